import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.pair._compatibility import check_tokenizers
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from tests.conftest import HOOKS, hooked, tiny_llama, with_lora

HOOK = HOOKS[1]


def states(model, tokens, layer=1):
    """The residual stream after a block, from transformers itself."""
    return model(tokens, output_hidden_states=True).hidden_states[layer + 1]


def test_views_are_the_two_models_hidden_states(pair, two_models, tokens):
    base, finetuned = (states(model, tokens) for model in two_models)
    _, cache = pair.run_with_cache(tokens)
    assert_close(cache[f"{HOOK}.base"], base)
    assert_close(cache[f"{HOOK}.finetuned"], finetuned)
    assert_close(cache[f"{HOOK}.diff"], finetuned - base)
    assert_close(cache[f"{HOOK}.concat"], torch.cat([base, finetuned], dim=-1))
    assert cache[f"{HOOK}.diff"].abs().max() > 1e-3


@pytest.mark.parametrize("fixture", ["pair", "lora_pair"])
def test_output_is_bit_identical_without_hooks_and_with_hooks_that_only_look(
    fixture, tokens, request
):
    pair = request.getfixturevalue(fixture)
    alone = pair.finetuned(tokens)
    assert torch.equal(pair(tokens), alone)
    assert torch.equal(pair.run_with_cache(tokens)[0], alone)
    looked = pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", lambda value, hook: value)])
    assert torch.equal(looked, alone)


@pytest.mark.parametrize("fixture", ["pair", "lora_pair"])
def test_zero_difference_is_the_base_activation_put_back(fixture, tokens, request):
    pair = request.getfixturevalue(fixture)
    with pair.base_model() as base:
        _, cache = base.run_with_cache(tokens)
    patched = pair.finetuned.run_with_hooks(
        tokens, fwd_hooks=[(HOOK, lambda value, hook: cache[HOOK])]
    )
    zeroed = pair.run_with_hooks(
        tokens, fwd_hooks=[(f"{HOOK}.diff", lambda value, hook: torch.zeros_like(value))]
    )
    assert torch.equal(zeroed, patched)
    assert not torch.allclose(zeroed, pair(tokens), atol=1e-3)


@pytest.mark.parametrize("view", ["base", "finetuned", "concat"])
def test_what_is_written_to_a_view_reaches_the_finetuned_model(pair, tokens, view):
    new = torch.randn(2, 7, pair.cfg.d_model, generator=torch.Generator().manual_seed(0))
    expected = pair.finetuned.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: new)])
    value = torch.cat([torch.zeros_like(new), new], dim=-1) if view == "concat" else new
    written = pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.{view}", lambda v, hook: value)])
    assert torch.equal(written, expected)


def test_editing_in_place_counts_as_writing(pair, tokens):
    def edit(value, hook):
        value[:, 2:] = 0
        return value

    def write(value, hook):
        return torch.cat([value[:, :2], torch.zeros_like(value[:, 2:])], dim=1)

    edited = pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", edit)])
    written = pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", write)])
    with torch.inference_mode():
        inferred = pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", edit)])
    assert torch.equal(edited, written)
    assert_close(inferred.clone(), edited)
    assert not torch.equal(edited, pair(tokens))


def test_two_equal_models_have_a_difference_of_exactly_zero(tokenizer, tokens):
    pair = HookedModelPair(
        boot_bridge(tiny_llama(), tokenizer), boot_bridge(tiny_llama(), tokenizer), HOOKS
    )
    _, cache = pair.run_with_cache(tokens)
    assert cache[f"{HOOK}.diff"].abs().max() == 0
    assert cache[f"{HOOK}.base"].abs().max() > 0


@pytest.mark.parametrize(("scale", "differs"), [(0.0, False), (0.5, True)])
def test_an_adapter_of_zeros_has_a_difference_of_exactly_zero(tokenizer, tokens, scale, differs):
    peft_model = with_lora(tiny_llama(), scale=scale)
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    pair = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)
    _, cache = pair.run_with_cache(tokens)
    assert bool(cache[f"{HOOK}.diff"].any()) == differs


def test_switched_adapter_equals_two_separately_loaded_models(lora_pair, tokenizer, tokens):
    merged = with_lora(tiny_llama(), scale=0.5).merge_and_unload()
    apart = HookedModelPair(
        boot_bridge(tiny_llama(), tokenizer), boot_bridge(merged, tokenizer), HOOKS
    )
    logits, cache = lora_pair.run_with_cache(tokens)
    expected_logits, expected = apart.run_with_cache(tokens)
    assert_close(logits, expected_logits, atol=1e-5, rtol=1e-4)
    for name in lora_pair.hook_dict:
        assert_close(cache[name], expected[name], atol=1e-5, rtol=1e-4)


def with_two_adapters():
    """A tiny model with adapters `sft` (which does nothing in half of the layers) and `dpo`."""
    peft_model = with_lora(tiny_llama(), scale=0.5, seed=2)
    config = peft_model.peft_config["default"]
    for name, targets, seed in (("sft", ["q_proj"], 3), ("dpo", ["q_proj", "down_proj"], 4)):
        peft_model.add_adapter(name, replace(config, target_modules=targets))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in peft_model.named_parameters():
            if f".{name}." in key:
                parameter.data.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    peft_model.set_adapter("dpo")
    peft_model.delete_adapter("default")
    return peft_model.eval().requires_grad_(False)


def test_two_adapters_of_one_base_are_a_pair_on_one_bridge(tokenizer, tokens):
    peft_model = with_two_adapters()
    expected = {}
    for name in ("sft", "dpo"):
        merged = copy.deepcopy(peft_model)
        merged.set_adapter(name)
        expected[name] = merged.merge_and_unload()
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    pair = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model, base_adapter="sft")
    assert_close(pair(tokens), expected["dpo"](tokens).logits, atol=1e-4, rtol=1e-4)
    two = hooked(expected["sft"], expected["dpo"], tokenizer)
    name = f"{HOOKS[1]}.diff"
    diff = pair.activations(tokens, name)[name]
    assert_close(diff, two.activations(tokens, name)[name], atol=1e-4, rtol=1e-3)
    assert diff.abs().max() > 0.01
    mirrored = pair.mirrored()
    assert_close(mirrored(tokens), expected["sft"](tokens).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(
        pair.generate(tokens, max_new_tokens=4), two.generate(tokens, max_new_tokens=4)
    )
    assert peft_model.active_adapters == ["dpo"]
    # Each side is known by its weights, in whatever pair it stands.
    peft_model.set_adapter("sft")
    alone = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)
    assert alone.metadata.finetuned_fingerprint == pair.metadata.base_fingerprint
    assert len({*vars(pair.metadata).values(), *vars(alone.metadata).values()} & {
        alone.metadata.base_fingerprint, pair.metadata.base_fingerprint,
        pair.metadata.finetuned_fingerprint,
    }) == 3  # fmt: skip


def test_adapters_that_act_together_are_known_by_every_one(tokenizer):
    found = set()
    for changed in (None, "sft", "dpo"):
        peft_model = with_two_adapters()
        peft_model.base_model.set_adapter(["sft", "dpo"])
        for name, parameter in peft_model.named_parameters():
            if changed and f".{changed}." in name:
                parameter.data.add_(0.1)
        bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
        pair = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model.requires_grad_(False))
        found.add(pair.metadata.finetuned_fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("name", ["dpo", "typo"])
def test_the_bases_adapter_is_another_than_the_active_one(tokenizer, name):
    peft_model = with_two_adapters()
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    with pytest.raises(ValueError, match=r"one of the adapters \['sft', 'dpo'\]"):
        HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model, base_adapter=name)


@pytest.mark.parametrize("fixture", ["pair", "lora_pair"])
@pytest.mark.parametrize("write", [False, True])
def test_generation_with_cache_equals_generation_without(fixture, write, tokens, request):
    pair = request.getfixturevalue(fixture)

    def halve(value, hook):
        return value * 0.5 if write else None

    shapes = []
    hooks = [(f"{HOOK}.diff", lambda value, hook: shapes.append(value.shape[1])),
             (f"{HOOK}.diff", halve)]  # fmt: skip
    with pair.hooks(fwd_hooks=hooks):
        cached = pair.generate(tokens, max_new_tokens=6, stop_at_eos=False)
        n_cached = len(shapes)
        plain = pair.generate(tokens, max_new_tokens=6, stop_at_eos=False, use_past_kv_cache=False)
    assert torch.equal(cached, plain)
    assert shapes[:n_cached] == [7, 1, 1, 1, 1, 1]
    assert shapes[n_cached:] == [7, 8, 9, 10, 11, 12]


def test_generation_stepwise_equals_the_hooked_forward_pass(pair, tokens):
    """Teacher-forced: every generated token is the argmax of the hooked forward pass."""
    hooks = [(f"{HOOK}.diff", lambda value, hook: value * -1.0)]
    with pair.hooks(fwd_hooks=hooks):
        out = pair.generate(tokens, max_new_tokens=5, stop_at_eos=False)
        logits = pair(out)
    assert torch.equal(out[:, 7:], logits[:, 6:-1].argmax(-1))
    assert not torch.equal(out, pair.generate(tokens, max_new_tokens=5, stop_at_eos=False))


def test_batched_generation_equals_one_by_one(pair):
    prompts = ["a", "some longer prompt", "mid one"]
    hooks = [(f"{HOOK}.diff", lambda value, hook: value * 3.0)]
    with pair.hooks(fwd_hooks=hooks):
        together = pair.generate(prompts, max_new_tokens=5)
        apart = [pair.generate(p, max_new_tokens=5) for p in prompts]
    assert together == apart


def test_base_runs_only_as_deep_as_the_deepest_hook_and_only_when_needed(pair, tokens):
    ran = []
    with pair.base_model() as base:
        for layer in range(pair.cfg.n_layers):
            base.add_hook(
                f"blocks.{layer}.hook_resid_post", lambda v, hook, layer=layer: ran.append(layer)
            )
    pair(tokens)
    pair.run_with_cache(tokens, names_filter=[f"{HOOK}.finetuned"])
    assert ran == []
    pair.run_with_cache(tokens, names_filter=[f"{HOOKS[0]}.diff"])
    assert ran == [0]
    ran.clear()
    pair.run_with_cache(tokens, names_filter=[f"{HOOKS[0]}.diff", f"{HOOKS[1]}.base"])
    assert ran == [0, 1]


def test_only_hooked_views_are_computed(pair, tokens):
    seen = []
    for name, point in pair.hook_dict.items():
        point.register_forward_hook(lambda module, args, out, name=name: seen.append(name))
    for names_filter in (f"{HOOK}.diff", [f"{HOOK}.diff"], lambda name: name == f"{HOOK}.diff"):
        seen.clear()
        _, cache = pair.run_with_cache(tokens, names_filter=names_filter)
        assert set(seen) == set(cache) == {f"{HOOK}.diff"}


def test_gradients_reach_a_view_through_a_backward_hook(pair, tokens):
    grads = {}
    with (
        torch.enable_grad(),
        pair.hooks(
            fwd_hooks=[(f"{HOOK}.diff", lambda v, hook: v.requires_grad_())],
            bwd_hooks=[(f"{HOOK}.diff", lambda g, hook: grads.update(diff=g))],
        ),
    ):
        pair(tokens)[:, -1].sum().backward()
    assert grads["diff"].abs().sum() > 0


def test_hooks_are_gone_after_a_run_even_a_failed_one(pair, tokens):
    def fail(value, hook):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", fail)])
    assert not any(point.has_hooks("both") for point in pair.hook_dict.values())
    assert not pair.finetuned.original_model._forward_pre_hooks
    assert torch.equal(pair(tokens), pair.finetuned(tokens))


@pytest.mark.parametrize("name", ["blocks.9.hook_resid_post.diff", HOOK, f"{HOOK}.difference"])
def test_unknown_names_and_views_are_errors(pair, tokens, name):
    with pytest.raises(ValueError, match="not a hook point of this pair"):
        pair.run_with_hooks(tokens, fwd_hooks=[(name, lambda v, hook: None)])
    with pytest.raises(ValueError, match="not a hook point of this pair"):
        pair.run_with_cache(tokens, names_filter=[name])
    with pytest.raises(ValueError, match="not a hook point of this pair"):
        pair.run_with_cache(tokens, names_filter=name)
    with pytest.raises(ValueError, match="not a hook point of this pair"):
        pair.d_in(name)


def test_a_write_of_the_wrong_shape_is_an_error(pair, tokens):
    with pytest.raises(ValueError, match="must write a value of shape"):
        pair.run_with_hooks(tokens, fwd_hooks=[(f"{HOOK}.diff", lambda v, hook: v[:, :1])])


def test_bad_pairs_are_refused(tokenizer):
    bridge = boot_bridge(tiny_llama(), tokenizer)
    other = boot_bridge(tiny_llama(1), tokenizer)
    with pytest.raises(ValueError, match="one object"):
        HookedModelPair(bridge, bridge, HOOKS)
    merged = with_lora(tiny_llama(), scale=1.0)
    base = merged.get_base_model()
    with pytest.raises(ValueError, match="merge_and_unload"):
        HookedModelPair(
            boot_bridge(base, tokenizer), boot_bridge(merged.merge_and_unload(), tokenizer), HOOKS
        )
    with pytest.raises(ValueError, match="at least|one or more"):
        HookedModelPair(bridge, other, [])
    with pytest.raises(ValueError, match="one or more"):
        HookedModelPair(bridge, other, HOOK)
    with pytest.raises(ValueError, match="not a hook of the model"):
        HookedModelPair(bridge, other, ["blocks.7.hook_resid_post"])
    with pytest.raises(ValueError, match="own names"):
        HookedModelPair(bridge, other, [f"{HOOK}.diff"])
    with pytest.raises(ValueError, match="twice"):
        HookedModelPair(bridge, other, [HOOK, HOOK])
    deeper = boot_bridge(tiny_llama(num_hidden_layers=4), tokenizer)
    with pytest.raises(ValueError, match="n_layers 3.*has 4"):
        HookedModelPair(bridge, deeper, HOOKS)


def test_tokenizers_must_agree(tokenizer, caplog):
    check_tokenizers(tokenizer, copy.deepcopy(tokenizer))
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="<new>"):
        check_tokenizers(tokenizer, other)
    other = copy.deepcopy(tokenizer)
    other.pad_token = "<eos>"  # roles may differ, as of a chat model
    with caplog.at_level("INFO", logger="diffsae_lens"):
        check_tokenizers(tokenizer, other)
    assert "pad_token" in caplog.text


def test_texts_get_no_bos_unless_the_pair_says_so(pair, two_models, tokenizer):
    assert pair.to_tokens("ab").tolist() == [tokenizer("ab").input_ids]
    assert pair.to_tokens("ab", prepend_bos=True)[0, 0] == tokenizer.bos_token_id
    expected = two_models[1](torch.tensor([tokenizer("ab").input_ids])).logits
    assert_close(pair("ab"), expected)
