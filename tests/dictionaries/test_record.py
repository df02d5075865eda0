"""One record per dictionary; and a stock dictionary on `.concat` is a crosscoder everywhere."""

import json

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from diffsae_lens.dictionaries import CrosscoderSAE, CrosscoderSAEConfig
from diffsae_lens.dictionaries._decoding import decoder_halves
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._scales import activation_scales
from diffsae_lens.interventions._features import induce_features, keep_only_features
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy
from diffsae_lens.reading._features import describe_features
from diffsae_lens.reading._latent_scaling import latent_scaling
from diffsae_lens.reading._reconstruction import reconstruction, recovered
from tests.conftest import D_MODEL, HOOKS

D_SAE = 40


def stock(kind="jumprelu", view="concat", seed=0) -> SAE:
    """SAELens's own dictionary, of which nothing is recorded but its hook."""
    torch.manual_seed(seed)
    d_in = 2 * D_MODEL if view == "concat" else D_MODEL
    if kind == "topk":
        sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=D_SAE, k=5, apply_b_dec_to_input=False))
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=D_SAE, apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = f"{HOOKS[1]}.{view}"
    return sae


def as_crosscoder(sae: SAE) -> CrosscoderSAE:
    ours = CrosscoderSAE(CrosscoderSAEConfig(d_in=sae.cfg.d_in, d_sae=D_SAE))
    ours.load_state_dict(sae.state_dict())
    ours.cfg.metadata.hook_name = sae.cfg.metadata.hook_name
    return ours


def test_what_is_written_is_read_again_after_saving(tmp_path):
    sae = stock()
    record = DictionaryRecord(
        hook_name=sae.cfg.metadata.hook_name,
        pair=PairMetadata(base="a/b", finetuned="c/d", adapter=True, dtype="float32"),
        tokens=TokenPolicy(skip_positions=1, ignored_token_ids=(0, 2)),
        seed=3, k=32, l0=31.5, normalization={"scale": [2.0, 3.0]}, frozen_decoder=True,
        tokens_sha256="abc", model_name="c/d", prepend_bos=False, context_size=64,
        versions={"torch": "2"},
    )  # fmt: skip
    record.write_to(sae.cfg)
    sae.save_model(tmp_path)
    again = DictionaryRecord.of(SAE.load_from_disk(tmp_path))
    assert again.hook == VirtualHook(HOOKS[1], "concat")
    for name in vars(record):
        if name != "view":
            assert getattr(again, name) == getattr(record, name), name
    assert again.scales == (2.0, 3.0)
    stored = json.loads((tmp_path / "cfg.json").read_text())["metadata"]["diffsae_lens"]
    assert stored["view"] == "concat"
    assert stored["sign"] == "finetuned - base"
    assert stored["l0_held_out"] == 31.5


def test_of_a_stock_dictionary_little_is_known():
    record = DictionaryRecord.of(stock("topk", "diff"))
    assert (record.hook_name, record.view, record.k) == (f"{HOOKS[1]}.diff", "diff", 5)
    assert record.tokens == EVERY_TOKEN
    assert record.pair is record.seed is record.l0 is record.normalization is None
    alone = stock(view="diff")
    alone.cfg.metadata.hook_name = HOOKS[1]
    assert DictionaryRecord.of(alone).hook is DictionaryRecord.of(alone).spec is None
    nameless = as_crosscoder(stock())
    nameless.cfg.metadata.hook_name = None
    assert DictionaryRecord.of(nameless).is_crosscoder  # its class says so


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("text", "must be a mapping"),
        ({"pair": {"base": "a"}}, "must name its `base` and `finetuned`"),
        ({"pair": ["a", "b"]}, "must name its `base` and `finetuned`"),
        ({"view": "diff"}, "the view of"),
        ({"skip_positions": -1}, "`skip_positions`"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(stored, message):
    sae = stock()
    sae.cfg.metadata.diffsae_lens = stored
    with pytest.raises(ValueError, match=message):
        DictionaryRecord.of(sae)
    sae.cfg.metadata.diffsae_lens, sae.cfg.metadata.hook_name = None, 3
    with pytest.raises(ValueError, match="hook_name"):
        DictionaryRecord.of(sae)


# --- a stock dictionary on `.concat` ------------------------------------------------------------------


def test_a_stock_jumprelu_is_what_our_crosscoder_is(pair, tokens):
    sae = stock()
    ours = as_crosscoder(sae)
    texts = ["abcdefgh", "stuvwxyz"]
    ids = pair.to_tokens(texts, padding_side="right")
    tables = [describe_features(pair, d, ids, n_examples=0) for d in (sae, ours)]
    assert list(tables[0].columns) == list(tables[1].columns)
    assert "nu_error" in tables[0]
    assert tables[0].equals(tables[1])
    for half, theirs in zip(decoder_halves(sae), decoder_halves(ours), strict=True):
        assert torch.equal(half, theirs)
    x = pair.activations(ids, f"{HOOKS[1]}.concat")[f"{HOOKS[1]}.concat"].flatten(0, 1)
    found = [latent_scaling(d, x).nu_error for d in (sae, ours)]
    assert torch.equal(found[0].nan_to_num(), found[1].nan_to_num())
    measured = [reconstruction(d, x).variance_explained for d in (sae, ours)]
    assert measured[0] == measured[1]
    assert list(measured[0]) == ["base", "finetuned", "diff"]
    assert recovered(pair, sae, tokens) == recovered(pair, ours, tokens)
    written = [activation_scales(pair, d, texts).decoder_norm for d in (sae, ours)]
    assert torch.equal(*written)
    for change in (keep_only_features, induce_features):
        logits = []
        for d in (sae, ours):
            edit = change(pair, d, range(D_SAE))
            with edit:
                logits.append(edit.pair(tokens))
        assert torch.equal(*logits)
        assert not torch.equal(logits[0], pair(tokens))


def test_a_stock_topk_has_two_halves(pair):
    sae = stock("topk")
    base, finetuned = decoder_halves(sae)
    assert base.shape == finetuned.shape == (D_SAE, D_MODEL)
    ids = pair.to_tokens(["abcdefgh", "stuvwxyz"], padding_side="right")
    assert "decoder_cosine" in describe_features(pair, sae, ids, n_examples=0)
    assert "decoder_cosine" not in describe_features(pair, stock(view="diff"), ids, n_examples=0)
