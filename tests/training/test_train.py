"""The everyday case: texts in, one trained dictionary out."""

import logging
from dataclasses import replace

import pytest
import torch

from diffsae_lens.dictionaries._load import load
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.training import _train as module
from diffsae_lens.training._checkpoints import Checkpoints
from diffsae_lens.training._harvest import HarvestConfig
from diffsae_lens.training._train import TrainConfig, train
from tests.conftest import D_MODEL, HOOKS, plant, tiny_llama

SITE = HOOKS[1]
CONFIG = TrainConfig(context_size=24, batch_size=64, harvest=HarvestConfig(batch_size=32))
SIZES = {"site": SITE, "d_sae": 32, "k": 3, "n_steps": 24, "config": CONFIG}


def texts(n=80):
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (n, 20), generator=generator)
    return ["".join(map(chr, row)) for row in letters.tolist()]


@pytest.fixture
def counted(monkeypatch):
    """How often activations were harvested and dictionaries trained anew."""
    calls = []
    run = HookedModelPair.activations
    monkeypatch.setattr(
        HookedModelPair, "activations", lambda *a, **k: calls.append("read") or run(*a, **k)
    )
    return calls


@pytest.fixture
def planted(tokenizer):
    """In the fine-tuned model one direction of the residual stream is written at layer 1 alone."""
    base = tiny_llama()
    finetuned = plant(base, scale=0.0)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(D_MODEL, generator=generator)
    direction /= direction.norm()
    reads = torch.randn(32, generator=generator)
    finetuned.model.layers[1].mlp.down_proj.weight.data += 4 * torch.outer(direction, reads)
    pair = HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)
    return pair, direction


@pytest.mark.parametrize("kind", ["diff", "crosscoder"])
def test_what_was_planted_is_found(planted, tmp_path, kind):
    pair, direction = planted
    sae = train(pair, texts(), kind=kind, path=tmp_path, **{**SIZES, "n_steps": 200})
    record = DictionaryRecord.of(sae)
    assert (record.hook.site, record.seed, record.k) == (SITE, 0, 3)
    assert record.pair == pair.metadata
    assert record.l0 == pytest.approx(3, abs=0.2)
    read = pair.activations(texts()[:8], [record.hook, f"{SITE}.diff"])
    value, diff = (read[name][:, 1:].flatten(0, 1) for name in (record.hook_name, f"{SITE}.diff"))
    view = record.spec
    with torch.no_grad():
        error = diff - view.difference(sae(value))
        implied = view.difference(sae.W_dec)
    assert 1 - error.square().sum() / (diff - diff.mean(0)).square().sum() > 0.9
    cosines = (implied @ direction / implied.norm(dim=-1)).abs()
    assert cosines.max() > 0.98
    other = torch.linalg.svd(direction[None]).Vh[1]  # nothing was written there
    assert (implied @ other / implied.norm(dim=-1)).abs()[cosines > 0.98].max() < 0.2


def test_where_nothing_was_planted_there_is_nothing_to_train_on(tokenizer, tmp_path):
    bridges = [boot_bridge(tiny_llama(), tokenizer) for _ in range(2)]
    with pytest.raises(ValueError, match="do not vary .are the two models the same"):
        train(HookedModelPair(*bridges, HOOKS), texts(), path=tmp_path, **SIZES)


def test_it_is_read_again_and_both_kinds_share_one_harvest(pair, tmp_path, counted):
    first = train(pair, texts(), path=tmp_path, **SIZES)
    n_read = len(counted)
    again = train(pair, texts(), path=tmp_path, **SIZES)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    train(pair, texts(), kind="crosscoder", path=tmp_path, **SIZES)
    other = train(pair, texts(), seed=1, path=tmp_path, **SIZES)
    assert len(counted) == n_read
    assert not torch.equal(other.W_dec, first.W_dec)
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == [
        f"activations-{SITE}", f"crosscoder-{SITE}-32-k3-seed0", f"diff-{SITE}-32-k3-seed0",
        f"diff-{SITE}-32-k3-seed1",
    ]  # fmt: skip
    loaded = load(tmp_path / names[2], pair=pair)
    assert torch.equal(loaded.W_enc, first.W_enc)
    with pytest.raises(ValueError, match="n_steps|total_training_samples"):
        train(pair, texts(), path=tmp_path, **{**SIZES, "n_steps": 50})
    with pytest.raises(ValueError, match="tokens_sha256"):
        train(pair, texts(40), path=tmp_path, **SIZES)


def test_a_diff_seen_in_both_models_is_the_diff_that_was_harvested(pair, tmp_path):
    from diffsae_lens.pair._hook import VirtualHook

    tokens = pair.tokenise(texts(6)).tokens
    names = [f"{SITE}.{view}" for view in ("concat", "diff", "base", "finetuned")]
    whole = module.harvest(pair, tokens, tmp_path / "all", hook_names=names)
    both = module.harvest(pair, tokens, tmp_path / "both", hook_names=names[:1])
    shown = both.showing([VirtualHook.parse(name) for name in names])
    for name, values in whole.rows(0, 6).items():
        assert torch.equal(shown.rows(0, 6)[name], values)
    with pytest.raises(ValueError, match="must be of what was harvested"):
        both.showing([VirtualHook(HOOKS[0], "diff")])


def test_an_interrupted_training_goes_on(pair, tmp_path, monkeypatch, caplog):
    class Interrupted(Exception):
        pass

    whole = train(pair, texts(), path=tmp_path / "whole", **SIZES)
    seal = Checkpoints.seal

    def stop_after(self, checkpoint_path):
        seal(self, checkpoint_path)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "seal", stop_after)
        with pytest.raises(Interrupted):
            train(pair, texts(), path=tmp_path / "cut", **SIZES)
    with caplog.at_level(logging.INFO, "diffsae_lens"):
        gone_on = train(pair, texts(), path=tmp_path / "cut", **SIZES)
    assert "going on from" in caplog.text
    torch.testing.assert_close(gone_on.W_dec, whole.W_dec)
    assert not list((tmp_path / "cut").glob("checkpoints-*"))


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"site": f"{SITE}.diff"}, ValueError, "`site` must be one of the pair's hooks"),
        ({"kind": "both"}, ValueError, "`kind` must be one of 'diff', 'crosscoder'"),
        ({"d_sae": 0}, ValueError, "`d_sae`"),
        ({"k": 33}, ValueError, "`k` must be at most `d_sae`, which is 32, got 33"),
        ({"k": 1.5}, TypeError, "`k`"),
        ({"n_steps": 0}, ValueError, "`n_steps`"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"texts": "abc"}, TypeError, "`texts` must be a list of texts"),
        ({"texts": []}, ValueError, "`texts` is empty"),
        ({"texts": ["abc", ""]}, ValueError, "`texts`.1. is empty"),
        ({"texts": ["abc"] * 9}, ValueError, "`texts` give .* tokens to train on"),
        ({"texts": ["a" * 100]}, ValueError, "`texts` give 0 tokens to train on"),
        ({"config": {"lr": 1}}, TypeError, "`config`"),
        ({"pair": "pair"}, TypeError, "`pair`"),
    ],
)
def test_bad_input_is_refused_before_anything_is_read(
    pair, tmp_path, counted, change, error, message
):
    call = {"pair": pair, "texts": texts(), "path": tmp_path / "run", **SIZES, **change}
    with pytest.raises(error, match=message):
        train(call.pop("pair"), call.pop("texts"), **call)
    assert not counted
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder(pair, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="`path`"):
        train(pair, texts(), path=tmp_path / "file", **SIZES)
    for name, value in (("context_size", 1), ("lr", 0.0), ("calibration_fraction", 1.0)):
        with pytest.raises(ValueError, match=f"`{name}`"):
            replace(CONFIG, **{name: value})
