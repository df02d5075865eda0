"""The everyday case: texts in, one trained dictionary out."""

import logging
from dataclasses import replace

import pytest
import torch

from diffsae_lens.dictionaries.load import load
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.loading import boot_bridge
from diffsae_lens.training import train as module
from diffsae_lens.training.harvest import HarvestConfig
from diffsae_lens.training.train import TrainConfig, train
from tests.conftest import D_MODEL, HOOKS, plant, tiny_llama

SITE = HOOKS[1]
CONFIG = TrainConfig(context_size=24, batch_size=64, harvest=HarvestConfig(batch_size=32))
SIZES = {"site": SITE, "d_sae": 32, "k": 3, "n_steps": 60, "config": CONFIG}


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
    sae = train(pair, texts(), kind=kind, path=tmp_path, **SIZES)
    record = DictionaryRecord.of(sae)
    assert (record.hook.site, record.seed, record.k) == (SITE, 0, 3)
    assert record.pair == pair.metadata
    assert record.l0 == pytest.approx(3, abs=0.2)
    value = pair.activations(texts()[:8], record.hook)[record.hook.name][:, 1:].flatten(0, 1)
    codes = sae.encode(value).detach()
    strength = pair.activations(texts()[:8], f"{SITE}.diff")[f"{SITE}.diff"][:, 1:].flatten(0, 1)
    rows = record.spec.difference(sae.W_dec.detach())
    written = codes @ rows @ direction
    found = torch.corrcoef(torch.stack([written, strength @ direction]))[0, 1]
    elsewhere = tiny_llama(5).model.layers[1].mlp.down_proj.weight[:, 0]
    nothing = codes @ rows @ (elsewhere / elsewhere.norm() - direction * (elsewhere @ direction))
    assert found > (0.9 if kind == "diff" else 0.5)
    assert written.std() > nothing.std()


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
    from diffsae_lens.pair.hook import VirtualHook

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
    seal = module.train_dictionaries.__globals__["Checkpoints"].seal

    def stop_after(self, path):
        seal(self, path)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("diffsae_lens.training.checkpoints.Checkpoints.seal", stop_after)
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
        ({"k": 33}, ValueError, "`k` must be at most 32"),
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
