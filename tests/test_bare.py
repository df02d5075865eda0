"""Generation leaves a bridge's own computation out where nobody hooks it, with equal results."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaAttention

from diffsae_lens import _hosts
from diffsae_lens.interventions._run import complete
from diffsae_lens.pair._greedy import Steps
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from tests.families.models import FAMILIES
from tests.test_shared import NEW, PAIRS, PROMPTS, edits_of, lora, made

BY_FAMILY = {"gemma2": "eager"}  # its attention scores have a soft cap


@pytest.fixture
def pair(tokenizer):
    return made("llama", "two models", tokenizer)


def step(pair, attention):
    tokens = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), pair._running(attention=attention) as run:
        return Steps(pair._models[1], run, torch.ones_like(tokens))(tokens)


def bare_parts(pair):
    return [part for part in pair.finetuned.original_model.modules() if "forward" in vars(part)]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_what_nobody_hooks_is_computed_as_transformers_does(family, kind, tokenizer):
    pair, bridged = made(family, kind, tokenizer), made(family, kind, tokenizer)
    bridged._attention = None
    assert complete(pair, PROMPTS, under=edits_of(pair), **NEW) == complete(
        bridged, PROMPTS, under=edits_of(bridged), **NEW
    )
    assert complete(pair, PROMPTS, **NEW) == complete(bridged, PROMPTS, **NEW)
    assert pair._attention == BY_FAMILY.get(family, "sdpa")
    assert_close(step(pair, pair._attention), step(pair, None), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "hook", ["attn.hook_pattern", "attn.hook_z", "mlp.hook_out", "ln2.hook_normalized"]
)
def test_hooks_inside_a_block_are_shown_what_they_ask_for(pair, hook):
    seen: dict[str | None, list[torch.Tensor]] = {}
    complete(pair, PROMPTS, **NEW)  # how to compute is found out once
    for attention in ("sdpa", None):
        pair._attention = attention
        looks = [
            (f"blocks.1.{hook}", lambda v, hook, at=attention: seen.setdefault(at, []).append(v))
        ]
        with pair.finetuned.hooks(looks):
            complete(pair, PROMPTS, **NEW)
    assert len(seen["sdpa"]) == len(seen[None]) > 1
    for bare, bridged in zip(seen["sdpa"], seen[None], strict=True):
        assert_close(bare[:, -1], bridged[:, -1], atol=1e-4, rtol=1e-4)  # padding comes first


def test_edits_inside_a_block_act(tokenizer):
    base = FAMILIES["llama"].build().requires_grad_(False)
    adapter = lora(base)
    bridge = boot_bridge(adapter.get_base_model(), tokenizer)
    sites = ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"]
    pair = HookedModelPair(bridge, bridge, sites, adapter=adapter)
    texts = {}
    for attention in ("", None):
        pair._attention = attention
        for site in sites:
            with pair.hooks([(f"{site}.diff", lambda value, hook: 3 - 4 * value)]):
                texts[attention, site] = complete(pair, PROMPTS, **NEW)
    plain = complete(pair, PROMPTS, **NEW)
    for site in sites:
        assert texts["", site] == texts[None, site] != plain


def test_nothing_is_left_bare(pair):
    config = pair.finetuned.original_model.config
    during = []

    def look(value, hook):
        during.append((len(bare_parts(pair)), config._attn_implementation))
        if len(during) > 3:
            raise KeyboardInterrupt

    complete(pair, PROMPTS, **NEW)
    with (
        pytest.raises(KeyboardInterrupt),
        pair.hooks([("blocks.0.hook_resid_post.finetuned", look)]),
    ):
        complete(pair, PROMPTS, **NEW)
    assert during[0][0] > 20
    assert during[0][1] == "sdpa"
    assert not bare_parts(pair)
    assert config._attn_implementation == "eager"


def test_reading_stays_the_bridges_own(pair, tokens):
    expected = pair.finetuned(tokens)
    complete(pair, PROMPTS, **NEW)
    assert torch.equal(pair(tokens), expected)


def test_a_model_that_computes_something_else_is_found_out(pair, monkeypatch):
    expected = complete(pair, PROMPTS, **NEW)
    own = LlamaAttention.forward

    def doubled(*args, **kwargs):
        output, pattern = own(*args, **kwargs)
        return 2 * output, pattern

    monkeypatch.setattr(LlamaAttention, "forward", doubled)
    pair._attention = ""
    assert complete(pair, PROMPTS, **NEW) == expected
    assert pair._attention is None


def test_a_model_without_fused_attention_keeps_its_own(pair, monkeypatch):
    monkeypatch.setattr(_hosts, "has_fused_attention", lambda model: False)
    complete(pair, PROMPTS, **NEW)
    assert pair._attention == "eager"
