"""Training on a stream of texts, with both models running as dictionaries need tokens."""

import weakref
from collections import Counter
from dataclasses import replace

import datasets
import pytest
import torch
from sae_lens import TopKTrainingSAEConfig
from torch.testing import assert_close

from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.training._activations import PairedActivations
from diffsae_lens.training._checkpoints import Checkpoints
from diffsae_lens.training._harvest import HarvestConfig, harvest
from diffsae_lens.training._mixing import Mixer
from diffsae_lens.training._recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training._run_config import DiffSAERunnerConfig, TrainingRun
from diffsae_lens.training._runner import train_dictionaries
from diffsae_lens.training._stream import stream
from diffsae_lens.training._stream_reader import StreamConfig, TextReader
from diffsae_lens.training._train import TrainConfig, train
from tests.conftest import D_MODEL, HOOKS
from tests.training.test_train import texts

BATCH, N_STEPS, N_HELD_OUT = 32, 24, 8
BUFFER = StreamConfig(buffer_tokens=320, n_held_out=N_HELD_OUT)
HARVEST = HarvestConfig(batch_size=4, sequences_per_shard=6)
CONFIG = TrainConfig(context_size=24, batch_size=BATCH, harvest=HARVEST, stream=BUFFER)
SIZES = {"site": HOOKS[1], "d_sae": 32, "k": 3, "n_steps": N_STEPS, "config": CONFIG}
NAMES = [f"{HOOKS[1]}.diff", f"{HOOKS[1]}.concat", f"{HOOKS[0]}.diff"]
N_TOKENS = 19
"""Of each text, the first left out."""


class Stream:
    """Texts that come again whenever they are iterated over, unless the power fails."""

    def __init__(self, n=80, fails_at=None):
        self.texts, self.fails_at = texts(n), fails_at

    def __iter__(self):
        for i, text in enumerate(self.texts):
            if i == self.fails_at:
                raise KeyboardInterrupt
            yield text


def streamed(pair, given=None, *, config=BUFFER, names=NAMES):
    return stream(
        pair, given or Stream(), hook_names=names, context_size=24, config=config, harvest=HARVEST
    )


def training_run(tmp_path, n_steps=N_STEPS):
    trainer = short_training(
        n_steps=n_steps, checkpoints=tmp_path / "checkpoints", batch_size=BATCH
    )
    return TrainingRun(trainer=replace(trainer, n_batches_for_norm_estimate=4))


def configs():
    sizes = {"d_model": D_MODEL, "d_sae": 32, "k": 3}
    return {
        "diff": diff_sae(HOOKS[1], **sizes), "crosscoder": crosscoder(HOOKS[1], **sizes),
        "lower diff": diff_sae(HOOKS[0], **sizes),
    }  # fmt: skip


def drawn(activations, run, n=100):
    """The batches of a training until the stream ends, each hook point's in one tensor."""
    feed, batches = activations.feed(run), []
    with pytest.raises(ValueError, match="`texts` ended after"):
        for _ in range(n):
            batches.append(next(feed))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def same_weights(one, other):
    return all(torch.equal(one.state_dict()[n], w) for n, w in other.state_dict().items())


def test_every_token_is_read_once_aligned_and_mixed(pair, tmp_path):
    read = drawn(streamed(pair), training_run(tmp_path))
    tokens = pair.tokenise(texts()[N_HELD_OUT:]).tokens
    expected = pair.activations(tokens, NAMES)
    rows = {name: values[:, 1:].flatten(0, 1) for name, values in expected.items()}
    concat = NAMES[1]
    which = torch.cdist(read[concat].double(), rows[concat].double()).argmin(1)
    for name in NAMES:
        assert_close(read[name], rows[name][which], atol=1e-5, rtol=1e-4)
    found, there = (
        Counter(map(tuple, values.round(decimals=3).tolist()))
        for values in (rows[concat][which], rows[concat])
    )
    assert found <= there  # texts that begin alike have tokens that are alike
    assert found.total() == there.total() // BATCH * BATCH
    text = which // N_TOKENS
    for batch in text.split(BATCH)[:-5]:  # of texts that are far apart, none of them too early
        assert len(batch.unique()) >= 8
    positions = torch.arange(len(text))
    assert torch.corrcoef(torch.stack([positions, text]).float())[0, 1] > 0.8
    again = drawn(streamed(pair), training_run(tmp_path))
    assert all(torch.equal(again[name], read[name]) for name in NAMES)
    assert not torch.equal(
        drawn(streamed(pair), replace(training_run(tmp_path), seed=1))[name], read[name]
    )


def in_order_of_stream(self, run):
    """The batches of a stream of 6 texts at a time, from a harvest of what is not held out."""
    generator, left = torch.Generator().manual_seed(run.seed), None
    for start in range(0, self.n_sequences - N_HELD_OUT, 6):
        rows = self.rows(start, min(start + 6, self.n_sequences - N_HELD_OUT))
        rows = rows if left is None else {n: torch.cat([left[n], rows[n]]) for n in rows}
        n = len(rows[self.hook_names[0]])
        order = torch.randperm(n, generator=generator)
        n_served = max(0, n - 160) // BATCH * BATCH
        for index in order[:n_served].split(BATCH) if n_served else ():
            yield {name: values[index] for name, values in rows.items()}
        left = {name: values[order[n_served:]] for name, values in rows.items()}


def test_a_stream_and_a_harvest_of_the_same_texts_in_the_same_order_train_the_same(
    pair, tmp_path, monkeypatch
):
    run = training_run(tmp_path)
    found = train_dictionaries(configs(), streamed(pair), tmp_path / "stream", run=run)
    tokens = pair.tokenise(texts()[N_HELD_OUT:] + texts()[:N_HELD_OUT]).tokens
    stored = harvest(pair, tokens, tmp_path / "h", hook_names=NAMES, config=HARVEST)
    monkeypatch.setattr(PairedActivations, "_training_batches", in_order_of_stream)
    run = replace(run, calibration_fraction=N_HELD_OUT / 80)
    expected = train_dictionaries(configs(), stored, tmp_path / "disk", run=run)
    for name, sae in expected.items():
        for weight, value in sae.state_dict().items():
            assert_close(found[name].state_dict()[weight], value, atol=1e-4, rtol=1e-3)
        one, other = DictionaryRecord.of(found[name]), DictionaryRecord.of(sae)
        assert one.l0 == pytest.approx(other.l0, abs=0.02)
        assert one.tokens == other.tokens
        assert one.normalization["n_tokens"] == other.normalization["n_tokens"] == 4 * BATCH


@pytest.mark.parametrize(
    ("fails_at", "n_read_ahead"),
    [
        (34, 2),
        (46, 0),
        pytest.param(20, 0, marks=pytest.mark.slow),
        pytest.param(52, 2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_training_comes_to_the_same_weights(
    pair, tmp_path, fails_at, n_read_ahead, whole
):
    config = replace(BUFFER, n_read_ahead=n_read_ahead)
    run = training_run(tmp_path)
    cut = streamed(pair, Stream(fails_at=fails_at), config=config)
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(configs(), cut, tmp_path, run=run)
    n_checkpoints = len(list((tmp_path / "checkpoints").glob("*/stream.safetensors")))
    assert n_checkpoints == {20: 0, 34: 1, 46: 2, 52: 3}[fails_at] or n_read_ahead
    again = (text for text in texts())  # a generator that was made anew
    found = train_dictionaries(configs(), streamed(pair, again, config=config), tmp_path, run=run)
    assert all(same_weights(found[name], sae) for name, sae in whole(pair).items())
    assert not list(tmp_path.glob("checkpoints*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The dictionaries of a training that nothing interrupts."""
    made = {}

    def get(pair):
        if not made:
            path = tmp_path_factory.mktemp("whole")
            made.update(train_dictionaries(configs(), streamed(pair), path, run=training_run(path)))
        return made

    return get


def test_saelens_own_normalisation_resumes_too(pair, tmp_path):
    def one():
        sae = TopKTrainingSAEConfig(
            d_in=D_MODEL, d_sae=32, k=3, normalize_activations="expected_average_only_in"
        )
        return {"one": DiffSAERunnerConfig(hook_name=HOOKS[1], sae=sae)}

    run, names = training_run(tmp_path), NAMES[:1]
    cut = streamed(pair, Stream(fails_at=52), names=names)
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(one(), cut, tmp_path / "cut", run=run)
    assert list((tmp_path / "checkpoints").glob("*/stream.safetensors"))
    found = train_dictionaries(one(), streamed(pair, names=names), tmp_path / "cut", run=run)
    expected = train_dictionaries(one(), streamed(pair, names=names), tmp_path / "whole", run=run)
    assert same_weights(found["one"], expected["one"])


def test_what_was_read_before_a_checkpoint_is_not_read_again(pair, tmp_path, monkeypatch):
    read, n_read = TextReader.read, []
    monkeypatch.setattr(
        TextReader,
        "read",
        lambda self, taken, first: n_read.append(first) or read(self, taken, first),
    )
    run, cut = training_run(tmp_path), streamed(pair, Stream(fails_at=52))
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(configs(), cut, tmp_path, run=run)
    n_read.clear()
    train_dictionaries(configs(), streamed(pair), tmp_path, run=run)
    assert n_read == [
        8,
        14,
        20,
        50,
        56,
        0,
    ]  # for the normalisation, from the checkpoint on, held out


def test_memory_does_not_grow_with_the_stream(pair, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    read, serve = TextReader.read, Mixer.serve

    def watched(self, taken, first):
        columns = read(self, taken, first)
        alive.update(columns.values())
        return columns

    def counted(self):
        most[-1] = max(most[-1], self.n_tokens + sum(map(len, alive)) / len(self._rows))
        return serve(self)

    monkeypatch.setattr(TextReader, "read", watched)
    monkeypatch.setattr(Mixer, "serve", counted)
    for n_steps in (20, 80):
        most.append(0)
        activations = streamed(pair, Stream(60 * n_steps // 20))
        feed = activations.feed(training_run(tmp_path, n_steps=n_steps))
        for _ in range(n_steps):
            next(feed)
    assert most[0] == most[1]
    assert BATCH < most[1] <= BUFFER.buffer_tokens + BATCH


@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset", "generator of rows", "file"])
def test_all_kinds_of_streams_give_the_same(pair, tmp_path, kind):
    rows = datasets.Dataset.from_dict({"n": list(range(81)), "text": [*texts(), ""]})
    (tmp_path / "texts").write_text("\n".join(texts()))
    given = {
        "Dataset": rows,
        "IterableDataset": rows.to_iterable_dataset(),
        "generator of rows": ({"text": text} for text in ["", *texts()]),
        "file": (line.rstrip() for line in (tmp_path / "texts").read_text().splitlines()),
    }[kind]
    run = training_run(tmp_path)
    expected = drawn(streamed(pair), run)
    found = drawn(streamed(pair, given), run)
    assert all(torch.equal(found[name], expected[name]) for name in NAMES)
    column = rows.rename_column("text", "content").remove_columns("n")
    with pytest.raises(ValueError, match=r"columns \['content'\], none of them 'text'"):
        streamed(pair, column)
    by_name = streamed(pair, column, config=replace(BUFFER, text_column="content"))
    assert by_name.recipe == streamed(pair).recipe


def test_one_call_trains_on_a_stream_and_reads_what_it_saved(pair, tmp_path):
    sae = train(pair, iter(texts()), path=tmp_path, **SIZES)
    record = DictionaryRecord.of(sae)
    assert (record.hook.site, record.k, record.pair) == (HOOKS[1], 3, pair.metadata)
    assert record.l0 == pytest.approx(3, abs=0.3)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [f"diff-{HOOKS[1]}-32-k3-seed0"]
    assert same_weights(train(pair, Stream(), path=tmp_path, **SIZES), sae)
    with pytest.raises(ValueError, match="first_texts_sha256"):
        train(pair, iter(texts()[1:]), path=tmp_path, **SIZES)
    with pytest.raises(ValueError, match="buffer_tokens"):
        config = replace(CONFIG, stream=replace(BUFFER, buffer_tokens=400))
        train(pair, Stream(), path=tmp_path, **{**SIZES, "config": config})


def test_a_stream_that_ends_early_says_how_much_there_was(pair, tmp_path):
    with pytest.raises(ValueError, match="ended after 30 texts, 8 of them held out and 418 tokens"):
        train(pair, Stream(30), path=tmp_path, **SIZES)
    with pytest.raises(ValueError, match=r"ended after 9 texts, 8 .* 19 tokens .*\(768 tokens\)"):
        train(pair, Stream(9), path=tmp_path, **SIZES)
    train(pair, Stream(60), path=tmp_path, **SIZES)  # more of the same goes on from a checkpoint


def test_a_generator_that_was_begun_cannot_be_gone_on_with(pair, tmp_path):
    class Interrupted(Exception):
        pass

    def stop_after(self, checkpoint_path):
        seal(self, checkpoint_path)
        raise Interrupted

    seal, once = Checkpoints.seal, iter(texts(160))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "seal", stop_after)
        with pytest.raises(Interrupted):
            train(pair, once, path=tmp_path, **SIZES)
    with pytest.raises(ValueError, match=r"first_texts_sha256.*make it anew"):
        train(pair, once, path=tmp_path, **SIZES)
    other = [*texts()[:20], "another text", *texts()[21:]]
    with pytest.raises(ValueError, match=r"does not give the \d+ texts again .*make it anew"):
        train(pair, iter(other), path=tmp_path, **SIZES)
    train(pair, Stream(), path=tmp_path, **SIZES)


def test_one_stream_trains_twice_if_it_begins_again(pair, tmp_path):
    run = training_run(tmp_path, n_steps=4)
    twice, once = streamed(pair, Stream()), streamed(pair, iter(texts()))
    assert twice.widths == {NAMES[0]: D_MODEL, NAMES[1]: 2 * D_MODEL, NAMES[2]: D_MODEL}
    first, second = (
        train_dictionaries(configs(), twice, tmp_path / n, run=run) for n in ("a", "b")
    )
    assert all(same_weights(first[name], second[name]) for name in first)
    train_dictionaries(configs(), once, tmp_path / "c", run=run)
    train_dictionaries(configs(), once, tmp_path / "c", run=run)  # reads what is there
    with pytest.raises(ValueError, match="was read once by a training"):
        train_dictionaries(configs(), once, tmp_path / "d", run=run)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (iter([]), ValueError, "`texts` gives no texts"),
        (iter(["", ""]), ValueError, "`texts` gives no texts"),
        (iter(["abc"] * 5), ValueError, "ended after 5 texts, and the first 8 are held out"),
        (iter(["a"] * 50), ValueError, "the first 8 `texts`.*no tokens"),
        (iter([3]), TypeError, "must give texts or conversations, got 3 .int. at 0"),
        (iter([*"abc", None]), TypeError, "got None .NoneType. at 3"),
        (iter([b"abc"]), TypeError, "got b'abc' .bytes. at 0"),
        (iter([{"text": 3}]), TypeError, "got 3 .int. at 0"),
        (5, TypeError, "`texts` must be"),
    ],
)
def test_bad_streams_are_refused_before_a_model_runs(
    pair, tmp_path, monkeypatch, given, error, message
):
    monkeypatch.setattr(pair, "run_with_cache", None)
    with pytest.raises(error, match=message):
        train(pair, given, path=tmp_path / "run", **SIZES)
    assert not (tmp_path / "run").exists()


def test_what_is_no_text_is_named_by_its_place(pair, tmp_path):
    with pytest.raises(TypeError, match="got 3 .int. at 40"):
        train(pair, iter([*texts()[:40], 3]), path=tmp_path, **SIZES)
    for bad, message in (("abc", "single text|iterable of texts"), ({"a": "b"}, "iterable")):
        with pytest.raises(TypeError, match=message):
            streamed(pair, bad)
    with pytest.raises(ValueError, match="is not a hook point"):
        streamed(pair, names=["blocks.7.hook_resid_post.diff"])
    with pytest.raises(ValueError, match="`context_size` must be more than `skip_positions`"):
        stream(pair, Stream(), hook_names=NAMES, context_size=1)
    with pytest.raises(ValueError, match="`buffer_tokens`"):
        StreamConfig(buffer_tokens=0)
