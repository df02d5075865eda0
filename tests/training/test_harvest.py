import json
from dataclasses import replace

import datasets
import pytest
import torch
from sae_lens import (
    ActivationsStore,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    StandardTrainingSAEConfig,
)
from torch.testing import assert_close

from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.training._activations import open_harvest
from diffsae_lens.training._harvest import HarvestConfig, harvest, join_harvests
from tests.conftest import HOOKS, plant, tiny_llama

NAMES = [f"{HOOKS[0]}.diff", f"{HOOKS[1]}.concat"]
CONFIG = HarvestConfig(batch_size=2, sequences_per_shard=3)


@pytest.fixture
def sequences(tokenizer):
    """Eight sequences of 6 tokens; the last two positions of every other one are padding."""
    tokens = torch.randint(3, 259, (8, 6), generator=torch.Generator().manual_seed(0))
    tokens[::2, 4:] = tokenizer.pad_token_id
    return tokens


def test_a_harvest_holds_what_the_pair_computes(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    _, cache = pair.run_with_cache(sequences, names_filter=NAMES)
    kept = sequences[:, 1:] != pair.tokenizer.pad_token_id
    for name in NAMES:
        assert_close(stored.rows(0, 8)[name], cache[name][:, 1:][kept], atol=1e-5, rtol=1e-4)
    assert stored.context_size == 5


def test_saelens_reads_it(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    dataset = datasets.load_from_disk(str(stored.path))
    assert set(dataset.column_names) == {*NAMES, "token_ids"}
    assert dataset.features[NAMES[1]].shape == (5, pair.d_in(NAMES[1]))


def test_saelens_trains_on_it_as_cached_activations(pair, sequences, tmp_path):
    stored = harvest(pair, sequences[1::2], tmp_path / "h", hook_names=NAMES, config=CONFIG)
    cfg = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=pair.d_in(NAMES[1]), d_sae=8, l1_coefficient=0.1),
        model_name="tiny-pair", hook_name=NAMES[1], dataset_path="unused",
        use_cached_activations=True, cached_activations_path=str(stored.path),
        context_size=stored.context_size, training_tokens=20, train_batch_size_tokens=4,
        n_batches_in_buffer=2, store_batch_size_prompts=2, prepend_bos=False, streaming=False,
        checkpoint_path=str(tmp_path / "c"), device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    texts = datasets.Dataset.from_dict({"text": ["abc"]})
    store = ActivationsStore.from_config(pair, cfg, override_dataset=texts)
    read = store.next_batch().reshape(-1, pair.d_in(NAMES[1]))
    kept = {tuple(row) for row in stored.rows(0, 4)[NAMES[1]].tolist()}
    assert len(read) == 4
    assert {tuple(row) for row in read.tolist()} <= kept


def test_batches_cover_an_epoch_once_aligned_and_repeatably(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    everything = stored.rows(0, 8)
    n_tokens = len(everything[NAMES[0]])  # 4 * 5 + 4 * 3
    assert n_tokens == 32

    def epoch(seed, **kwargs):
        batches = stored.batches(8, seed=seed, **kwargs)
        parts = [next(batches) for _ in range(4)]
        return {name: torch.cat([part[name] for part in parts]) for name in NAMES}

    shuffled = epoch(0, sequences_in_memory=3)
    for name in NAMES:
        ours, theirs = shuffled[name].tolist(), everything[name].tolist()
        assert sorted(ours) == sorted(theirs)
        assert ours != theirs
    # Aligned: the rows of the two hook points still belong together.
    lookup = {tuple(a): b for a, b in zip(*(everything[n].tolist() for n in NAMES), strict=True)}
    for first, second in zip(*(shuffled[n].tolist() for n in NAMES), strict=True):
        assert lookup[tuple(first)] == second
    assert_close(epoch(0)[NAMES[0]], epoch(0)[NAMES[0]])
    assert not torch.equal(epoch(0)[NAMES[0]], epoch(1)[NAMES[0]])


def test_a_batch_larger_than_the_harvest_is_an_error(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    with pytest.raises(ValueError, match="more than the tokens"):
        next(stored.batches(33, seed=0))


def test_an_interrupted_harvest_goes_on_where_it_was(pair, sequences, tmp_path, monkeypatch):
    expected = harvest(pair, sequences, tmp_path / "whole", hook_names=NAMES, config=CONFIG)
    run, n_runs = pair.run_with_cache, []

    def run_until_the_power_fails(*args, **kwargs):
        n_runs.append(1)
        if len(n_runs) == 3:  # in the second shard
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(pair, "run_with_cache", run_until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert not (tmp_path / "h").exists()
    n_runs.clear()
    n_runs.extend([1, 1, 1])
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert len(n_runs) - 3 == 3  # the first shard's two batches were not run again
    for name in NAMES:
        assert torch.equal(stored.rows(0, 8)[name], expected.rows(0, 8)[name])


def test_a_finished_harvest_is_opened_and_another_one_refused(
    pair, sequences, tmp_path, monkeypatch
):
    harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    monkeypatch.setattr(pair, "run_with_cache", None)
    harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    with pytest.raises(ValueError, match="tokens_sha256: .* there, .* asked for"):
        harvest(pair, sequences + 0 * 1 + (sequences > 200), tmp_path / "h", hook_names=NAMES)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_harvest_is_refused_and_made_anew(pair, sequences, tmp_path, caplog):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    expected = stored.rows(0, 8)
    file = next(stored.path.glob("*.arrow"))
    flip(file)
    with pytest.raises(ValueError, match=f"damaged: {file.name} was changed"):
        open_harvest(stored.path)
    again = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert f"{file.name} was changed" in caplog.text
    assert (tmp_path / "h.damaged").exists()
    for name in NAMES:
        assert torch.equal(again.rows(0, 8)[name], expected[name])


def test_bad_input_is_refused_before_a_model_runs(pair, sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(pair, "run_with_cache", None)
    with pytest.raises(ValueError, match="is not a hook point"):
        harvest(pair, sequences, tmp_path / "h", hook_names=[HOOKS[0]])
    with pytest.raises(ValueError, match="nothing to harvest"):
        harvest(pair, sequences, tmp_path / "h", hook_names=[])
    with pytest.raises(ValueError, match="nothing to harvest"):
        harvest(pair, sequences[:, :1], tmp_path / "h", hook_names=NAMES)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        HarvestConfig(batch_size=0)
    with pytest.raises(ValueError, match="each hook point once"):
        harvest(pair, sequences, tmp_path / "h", hook_names=[NAMES[0]] * 2)
    with pytest.raises(ValueError, match="padded on the right"):
        harvest(pair, sequences.flip(1), tmp_path / "h", hook_names=NAMES)
    too_long = sequences[:, :1].expand(-1, pair.cfg.n_ctx + 1)
    with pytest.raises(ValueError, match="context"):
        harvest(pair, too_long, tmp_path / "h", hook_names=NAMES)
    config = HarvestConfig()
    object.__setattr__(config, "batch_size", 2.5)  # past the tests' own type checks
    with pytest.raises(TypeError, match="`batch_size` must be an int"):
        config.__post_init__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(2, 1), (3, 8), (2, 3)])
def test_a_harvest_goes_on_with_other_batch_and_shard_sizes(
    pair, sequences, tmp_path, monkeypatch, sizes
):
    expected = harvest(pair, sequences, tmp_path / "whole", hook_names=NAMES, config=CONFIG)
    run, n_runs = pair.run_with_cache, []

    def run_until_memory_is_out(*args, **kwargs):
        n_runs.append(1)
        if len(n_runs) == 4:  # in the second shard
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(pair, "run_with_cache", run_until_memory_is_out)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    monkeypatch.setattr(pair, "run_with_cache", run)
    config = HarvestConfig(batch_size=sizes[0], sequences_per_shard=sizes[1])
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=config)
    assert stored.n_sequences == len(datasets.load_from_disk(str(stored.path))) == 8
    for name in NAMES:  # the rows of the texts, each once and in order
        assert_close(stored.rows(0, 8)[name], expected.rows(0, 8)[name], atol=1e-6, rtol=1e-5)


def interrupt_in_third_shard(pair, sequences, path, monkeypatch):
    run, n_runs = pair.run_with_cache, []

    def run_until_the_power_fails(*args, **kwargs):
        n_runs.append(1)
        if len(n_runs) == 5:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(pair, "run_with_cache", run_until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        harvest(pair, sequences, path, hook_names=NAMES, config=CONFIG)
    monkeypatch.setattr(pair, "run_with_cache", run)


def test_a_damaged_shard_is_named_and_made_anew(pair, sequences, tmp_path, monkeypatch, caplog):
    expected = harvest(pair, sequences, tmp_path / "whole", hook_names=NAMES, config=CONFIG)
    interrupt_in_third_shard(pair, sequences, tmp_path / "h", monkeypatch)
    [shard] = tmp_path.glob("h.partial/scratch/rows_00000003_00000006/*.arrow")
    flip(shard)
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert "rows_00000003_00000006 is damaged" in caplog.text
    for name in NAMES:
        assert torch.equal(stored.rows(0, 8)[name], expected.rows(0, 8)[name])


def test_a_folder_of_the_user_is_never_deleted(pair, sequences, tmp_path):
    (tmp_path / "h.partial").mkdir()
    (tmp_path / "h.partial/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not touched"):
        harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert (tmp_path / "h.partial/thesis.tex").read_text() == "mine"


def test_models_are_known_by_their_weights_not_by_their_names(
    pair, sequences, tmp_path, tokenizer, monkeypatch
):
    harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    # Another fine-tune whose folder has the same name.
    base = tiny_llama()
    other = HookedModelPair(
        boot_bridge(base, tokenizer),
        boot_bridge(plant(base, seed=5), tokenizer),
        HOOKS,
        metadata=pair.metadata,
    )
    with pytest.raises(ValueError, match="finetuned: '.*' there, '.*' asked for"):
        harvest(other, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    # The same models, moved.
    pair.metadata = replace(pair.metadata, base="moved/base", finetuned="moved/finetuned")
    monkeypatch.setattr(pair, "run_with_cache", None)
    opened = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    assert opened.pair.base != "moved/base"


@pytest.mark.parametrize(
    ("side", "said"), [("base", "the base model"), ("finetuned", "fine-tuned")]
)
def test_activations_that_are_not_finite_are_refused(tokenizer, sequences, tmp_path, side, said):
    base = tiny_llama()
    finetuned = plant(base)
    broken = base if side == "base" else finetuned
    broken.model.embed_tokens.weight.data[int(sequences[5, 3])] = float("nan")
    pair = HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)
    row = int((sequences == sequences[5, 3]).any(dim=1).nonzero()[0])
    with pytest.raises(ValueError, match=f"blocks.0.*not finite in sequence {row} .*{said}"):
        harvest(
            pair, sequences, tmp_path / "h", hook_names=NAMES, config=HarvestConfig(batch_size=1)
        )
    assert not (tmp_path / "h").exists()


def test_a_manifest_that_was_cut_short_names_the_file(pair, sequences, tmp_path):
    stored = harvest(pair, sequences, tmp_path / "h", hook_names=NAMES, config=CONFIG)
    manifest = stored.path / "artifact.json"
    manifest.write_text(manifest.read_text()[:30])
    with pytest.raises(ValueError, match=r"artifact.json is not JSON.*remove it"):
        open_harvest(stored.path)
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError, match="has no artifact.json"):
        open_harvest(tmp_path / "other")
    recipe = {"kind": "dictionary"}
    manifest.write_text(json.dumps({"format": "", "recipe": recipe, "files": {}, "made": {}}))
    with pytest.raises(ValueError, match="is not a harvest, but a dictionary"):
        open_harvest(stored.path)


def test_several_finetunes_share_one_run_of_the_base(pair, sequences, tokenizer, tmp_path):
    first = harvest(pair, sequences, tmp_path / "a", hook_names=NAMES, config=CONFIG)
    base = tiny_llama()
    other = HookedModelPair(
        boot_bridge(base, tokenizer), boot_bridge(plant(base, seed=5), tokenizer), HOOKS
    )
    plain = harvest(other, sequences, tmp_path / "b", hook_names=NAMES[1:], config=CONFIG)
    ran = []
    handle = other._models[0].original_model.register_forward_hook(lambda *_: ran.append(1))
    shared = harvest(
        other, sequences, tmp_path / "c", hook_names=NAMES[1:], config=CONFIG, base=first
    )
    handle.remove()
    assert not ran
    assert shared.recipe == plain.recipe
    assert_close(shared.rows(0, 8), plain.rows(0, 8), atol=0, rtol=0)
    whole = shared.sequences(0, 8)[NAMES[1]]
    kept = sequences[:, 1:] != tokenizer.pad_token_id
    assert torch.equal(whole[kept], shared.rows(0, 8)[NAMES[1]])
    assert not torch.equal(shared.rows(0, 8)[NAMES[1]], first.rows(0, 8)[NAMES[1]])
    for names, tokens, message in (
        (NAMES[:1], sequences, r"`base` must be a harvest with '.base' or '.concat' at"),
        (NAMES[1:], sequences[:4], "has other tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            harvest(other, tokens, tmp_path / "d", hook_names=names, config=CONFIG, base=first)
    rebased = HookedModelPair(
        boot_bridge(plant(base, seed=7), tokenizer), boot_bridge(plant(base), tokenizer), HOOKS
    )
    with pytest.raises(ValueError, match="another base model"):
        harvest(rebased, sequences, tmp_path / "d", hook_names=NAMES[1:], config=CONFIG, base=first)


def test_activations_of_the_base_that_do_not_fit_are_refused(pair, sequences):
    site = HOOKS[0]
    known = pair.activations(sequences, f"{site}.base")[f"{site}.base"]
    read = pair.activations(sequences, f"{site}.diff", base={site: known})
    assert torch.equal(
        read[f"{site}.diff"], pair.activations(sequences, f"{site}.diff")[f"{site}.diff"]
    )
    for base in ({}, {site: known[:, 1:]}):
        with pytest.raises(ValueError, match="`base` must hold the base's activations at"):
            pair.activations(sequences, f"{site}.diff", base=base)
    assert pair.activations(sequences, f"{site}.finetuned", base={})


def test_joined_harvests_are_those_of_all_tokens(pair, sequences, tmp_path):
    options = {"hook_names": NAMES, "config": CONFIG}
    whole = harvest(pair, sequences, tmp_path / "whole", **options)
    parts = [
        harvest(pair, part, tmp_path / str(i), **options)
        for i, part in enumerate(sequences.tensor_split(3))
    ]
    joined = join_harvests(parts, tmp_path / "joined")
    assert (joined.n_sequences, joined.context_size) == (8, 5)
    for name, rows in whole.rows(0, 8).items():
        assert_close(joined.rows(0, 8)[name], rows, atol=0, rtol=0)
    assert open_harvest(tmp_path / "joined") == joined == join_harvests(parts, tmp_path / "joined")
    with pytest.raises(ValueError, match="joined was made with other settings"):
        join_harvests(parts[:2], tmp_path / "joined")


def test_only_harvests_of_one_kind_are_joined(pair, sequences, tmp_path):
    one = harvest(pair, sequences, tmp_path / "a", hook_names=NAMES, config=CONFIG)
    other = harvest(pair, sequences, tmp_path / "b", hook_names=NAMES[:1], config=CONFIG)
    shorter = harvest(pair, sequences[:, :4], tmp_path / "c", hook_names=NAMES, config=CONFIG)
    half = harvest(
        pair, sequences, tmp_path / "d", hook_names=NAMES, config=replace(CONFIG, dtype="float16")
    )
    for parts, differs in (
        ((one, other), "hook_names"),
        ((one, shorter), "width of the tokens"),
        ((one, half), "stored_as"),
        ((half, one), "stored_as"),
    ):
        with pytest.raises(ValueError, match=f"`parts` must differ .* differ in {differs}"):
            join_harvests(parts, tmp_path / "joined")
    with pytest.raises(ValueError, match="`parts` is empty"):
        join_harvests([], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
