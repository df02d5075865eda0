"""Dictionaries of other libraries compute, once loaded, what those libraries compute."""

import numpy as np
import pytest
import torch
from sae_lens import JumpReLUSAE, TopKSAE
from safetensors.torch import load_file
from torch.testing import assert_close

import diffsae_lens as dl
from diffsae_lens.dictionaries import CrosscoderSAE, DictionaryRecord
from diffsae_lens.dictionaries._decoding import decoder_halves
from diffsae_lens.dictionaries._foreign import _files
from diffsae_lens.organisms import Sample
from diffsae_lens.pair import TokenPolicy
from tests.conftest import D_MODEL, HOOKS
from tests.dictionaries.foreign import (
    D_SAE,
    IDS,
    NORMALISERS,
    crosscode,
    dictionary_learning_crosscoder,
    dictionary_learning_sae,
    drawn,
    llamascopium,
    replication,
)

CONCAT, DIFF = f"{HOOKS[1]}.concat", f"{HOOKS[1]}.diff"
SCALES = (0.4, 0.7)


def check(sae, forward, x=None):
    """Codes and reconstructions are the format's, and some features fire and some do not."""
    x = 2 * drawn(20, 64, 2, D_MODEL) if x is None else x
    codes, rebuilt = forward(x.astype(np.float64))
    given = torch.from_numpy(x).flatten(1)
    assert_close(sae.encode(given), torch.tensor(codes.copy()).float(), atol=1e-5, rtol=1e-5)
    assert_close(sae(given), torch.tensor(rebuilt.copy()).float().flatten(1), atol=1e-5, rtol=1e-5)
    assert 0.05 < (codes != 0).mean() < 0.95


@pytest.mark.parametrize("normalised", NORMALISERS)
@pytest.mark.parametrize("norm", IDS)
def test_dictionary_learning_batch_topk_crosscoders(tmp_path, norm, normalised):
    forward = dictionary_learning_crosscoder(tmp_path, norm=norm, normalised=normalised)
    sae = dl.load_foreign(tmp_path, hook=CONCAT)
    check(sae, forward)
    assert isinstance(sae, CrosscoderSAE)
    record = DictionaryRecord.of(sae)
    assert (record.hook_name, record.source_format) == (CONCAT, "dictionary_learning")
    said = " ".join(record.assumptions)
    assert ("keep_relative_variance=False" in said) == (normalised == "by neuron")
    assert ("keep_relative_variance=True" in said) == (normalised == "global")
    assert ("two here" in said) == (norm == "DECOUPLED")
    assert record.k == (8 if norm == "DECOUPLED" else 4)
    if (
        norm == "CROSSCODER" and normalised != "by neuron"
    ):  # as ours: norms add up to 1 where it trained
        base, finetuned = decoder_halves(sae)
        expected = torch.ones(D_SAE).index_fill(0, torch.tensor([1]), 0)
        assert_close(base.norm(dim=-1) + finetuned.norm(dim=-1), expected)


@pytest.mark.parametrize("norm", IDS)
def test_dictionary_learning_relu_crosscoders(tmp_path, norm):
    forward = dictionary_learning_crosscoder(
        tmp_path, norm=norm, normalised="global", batch_topk=False, config="trainer",
        weights="model_final.pt", prefix="_orig_mod.",
    )  # fmt: skip
    check(dl.load_foreign(tmp_path, hook=CONCAT), forward)


def test_what_a_dictionary_learning_file_does_not_say_is_assumed_and_said(tmp_path, caplog):
    forward = dictionary_learning_crosscoder(
        tmp_path, config=None, with_id=False, weights="a.pt", threshold=-1.0
    )
    sae = dl.load_foreign(tmp_path / "a.pt", hook=CONCAT)
    check(sae, forward)
    said = " ".join(DictionaryRecord.of(sae).assumptions)
    for words in ("CROSSCODER", "index 0 is the base", "dense"):
        assert words in said
        assert words in caplog.text
    mixed = tmp_path / "mixed"
    dictionary_learning_crosscoder(mixed, norm="MIXED", config=None)
    record = DictionaryRecord.of(dl.load_foreign(mixed, hook=CONCAT))
    assert any("weights of MIXED" in sentence for sentence in record.assumptions)


@pytest.mark.parametrize("normalised", NORMALISERS)
def test_dictionary_learning_saes_on_differences_of_either_sign(tmp_path, normalised):
    forward = dictionary_learning_sae(tmp_path, normalised=normalised)
    x = 2 * drawn(20, 64, D_MODEL)
    sae = dl.load_foreign(tmp_path, hook=DIFF, sign="finetuned - base")
    check(sae, forward, x)
    assert type(sae) is JumpReLUSAE
    turned = dl.load_foreign(tmp_path, hook=DIFF, sign="base - finetuned")

    def of_the_other_sign(x):
        codes, rebuilt = forward(-x)
        return codes, -rebuilt

    check(turned, of_the_other_sign, x)
    check(dl.load_foreign(tmp_path, hook=f"{HOOKS[1]}.base"), forward, x)


@pytest.mark.parametrize("scales", [SCALES, (1.0, 1.0)])
def test_replication_crosscoders_with_input_scales(tmp_path, scales):
    forward = replication(tmp_path, scales, config={"hook_point": HOOKS[1]})
    sae = dl.load_foreign(tmp_path, input_scales=scales)
    check(sae, forward)
    record = DictionaryRecord.of(sae)
    assert record.hook_name == CONCAT
    assert (record.tokens, record.prepend_bos) == (TokenPolicy(skip_positions=1), True)
    assert record.scales == pytest.approx([1 / s for s in scales])


def test_replication_scales_are_estimated_on_texts(tmp_path, pair):
    texts = [f"text number {i}" for i in range(20)]
    norms = [
        pair.activations(text, f"{HOOKS[1]}.{side}")[f"{HOOKS[1]}.{side}"][0].norm(dim=-1)
        for side in ("base", "finetuned")
        for text in texts
    ]
    scales = [D_MODEL**0.5 / torch.cat(part).mean().item() for part in (norms[:20], norms[20:])]
    forward = replication(tmp_path, scales)
    with pytest.warns(UserWarning, match="prepend_bos=True"):
        sae = dl.load_foreign(tmp_path, hook=CONCAT, pair=pair, texts=texts)
    check(sae, forward)
    assert any("estimated on 20 texts" in s for s in DictionaryRecord.of(sae).assumptions)


@pytest.mark.parametrize("scales", [None, SCALES])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "batchtopk"])
def test_crosscode_crosscoders(tmp_path, activation, scales):
    forward = crosscode(tmp_path, activation=activation, scales=scales)
    threshold = 0.9 if activation == "batchtopk" else None
    sae = dl.load_foreign(tmp_path, hook=CONCAT, threshold=threshold, input_scales=scales)
    check(sae, forward)
    record = DictionaryRecord.of(sae)
    assert record.is_crosscoder
    assert record.scales == pytest.approx([0.5, 0.5] if scales is None else [1 / s for s in scales])
    assert isinstance(sae, TopKSAE if activation == "topk" else CrosscoderSAE)


def test_crosscode_without_biases(tmp_path):
    forward = crosscode(tmp_path, biases=False)
    check(dl.load_foreign(tmp_path, hook=CONCAT), forward)


@pytest.mark.parametrize("norm", ["inference", "dataset-wise"])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "batchtopk"])
def test_llamascopium_crosscoders(tmp_path, act_fn, norm):
    forward = llamascopium(tmp_path, act_fn=act_fn, norm=norm)
    sae = dl.load_foreign(tmp_path, hook=CONCAT, threshold=0.5 if act_fn == "batchtopk" else None)
    check(sae, forward)
    assert sae.cfg.d_sae == (D_SAE if act_fn == "relu" else 2 * D_SAE)
    weights = tmp_path / "sae_weights.safetensors"
    torch.save({"sae": load_file(weights), "version": "1"}, tmp_path / "sae_weights.pt")
    weights.unlink()  # its other form
    check(
        dl.load_foreign(tmp_path, hook=CONCAT, threshold=0.5 if act_fn == "batchtopk" else None),
        forward,
    )


MAKERS = {
    "dictionary_learning": lambda folder: dictionary_learning_crosscoder(
        folder, normalised="global"
    ),
    "decoupled": lambda folder: dictionary_learning_crosscoder(
        folder, norm="DECOUPLED", normalised="global"
    ),
    "replication": lambda folder: replication(folder, SCALES),
    "crosscode": lambda folder: crosscode(folder, activation="jumprelu"),
    "llamascopium": lambda folder: llamascopium(folder, act_fn="jumprelu", norm="dataset-wise"),
}


def loaded(folder, kind, **settings):
    forward = MAKERS[kind](folder)
    scales = SCALES if kind == "replication" else None
    return dl.load_foreign(folder, hook=CONCAT, input_scales=scales, **settings), forward


@pytest.mark.parametrize("kind", MAKERS)
def test_the_finetuned_model_may_come_first(tmp_path, kind):
    forward = MAKERS[kind](tmp_path)
    scales = SCALES[::-1] if kind == "replication" else None
    sae = dl.load_foreign(tmp_path, hook=CONCAT, first="finetuned", input_scales=scales)

    def swapped(x):
        codes, rebuilt = forward(x[:, ::-1])
        if codes.shape[1] == 2 * D_SAE:
            codes = np.roll(codes, D_SAE, axis=1)
        return codes, rebuilt[:, ::-1]

    check(sae, swapped)
    assert "index 0 is the finetuned model" in DictionaryRecord.of(sae).assumptions[0]


@pytest.mark.parametrize("kind", [*MAKERS, "differences"])
def test_a_loaded_dictionary_reads_and_edits_a_pair_and_is_saved(tmp_path, pair, kind):
    if kind == "differences":
        dictionary_learning_sae(tmp_path / "theirs", threshold=0.01)
        sae = dl.load_foreign(tmp_path / "theirs", hook=DIFF, sign="base - finetuned", pair=pair)
    else:
        sae, _ = loaded(tmp_path / "theirs", kind)
    sae.cfg.metadata.prepend_bos = pair.prepend_bos
    texts = ["a prompt of some length", "and another one"]
    read = dl.feature_activations(pair, sae, texts)
    samples = [Sample(prompt=text, unwanted=" yes", wanted=" no") for text in texts]
    attribution = dl.attribute_features(pair, sae, samples)
    features = attribution.abs().topk(3).indices
    assert attribution.abs().max() > 0
    tokens = pair.tokenise(texts[:1]).tokens
    with dl.ablate_features(pair, sae, features):
        assert not torch.equal(pair(tokens), plain := pair.finetuned(tokens))
    assert torch.equal(pair(tokens), plain)
    sae.save_model(tmp_path / "ours")
    again = dl.load(tmp_path / "ours", pair=pair)
    assert torch.equal(dl.feature_activations(pair, again, texts), read)
    assert DictionaryRecord.of(again) == DictionaryRecord.of(sae)
    assert DictionaryRecord.of(again).assumptions


def test_a_repository_of_the_hub(tmp_path, monkeypatch):
    forward = dictionary_learning_crosscoder(tmp_path / "layer13", norm="SAE")
    (tmp_path / "README.md").write_text("a card")
    asked = []

    def download(repo_id, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(_files, "snapshot_download", download)
    check(dl.load_foreign("someone/crosscoders", sae_id="layer13", hook=CONCAT), forward)
    assert "layer13/model.safetensors" in asked
    named = "layer13/model.safetensors"
    check(dl.load_foreign("someone/crosscoders", sae_id=named, hook=CONCAT), forward)
    assert asked[-3:] == [named, "layer13/*.json", "layer13/*.yaml"]
    with pytest.raises(FileNotFoundError, match="sae_id"):
        dl.load_foreign("someone/crosscoders", hook=CONCAT)
    assert "model.safetensors" in asked
