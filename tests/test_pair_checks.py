"""What a pair refuses, and what it tells of a forward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._compatibility import check_models
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from tests.conftest import HOOKS, N_LAYERS, plant, tiny_llama, with_lora

HOOK = HOOKS[1]


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=259, n_embd=16, n_layer=N_LAYERS, n_head=2, n_positions=64,
            initializer_range=0.3, attn_implementation="eager",
        )  # fmt: skip
        return GPT2LMHeadModel(config).eval().requires_grad_(False)


# --- evaluation mode --------------------------------------------------------------------------


def test_models_in_training_mode_are_put_into_evaluation_mode(tokenizer, tokens):
    config = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with quiet_peft(), torch.random.fork_rng():
        peft_model = get_peft_model(tiny_llama(), config)
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
    peft_model.train()
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    pair = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)
    assert torch.equal(pair(tokens), pair(tokens))
    peft_model.train()
    with pytest.raises(RuntimeError, match=r"training mode.*pair\.eval\(\)"):
        pair(tokens)
    assert torch.equal(pair.eval()(tokens), pair(tokens))
    with pytest.raises(TypeError, match="always in evaluation mode"):
        pair.train()


def test_a_null_pair_with_dropout_has_no_difference(tokenizer, tokens):
    bridges = [boot_bridge(tiny_gpt2().train(), tokenizer) for _ in range(2)]
    _, cache = HookedModelPair(*bridges, HOOKS).run_with_cache(tokens)
    assert not cache[f"{HOOK}.diff"].any()


# --- what torch asks of a module ------------------------------------------------------------------


def test_parameters_and_state_are_those_of_both_models(pair, lora_pair, two_models):
    names = [name for name, _ in pair.named_parameters()]
    n_each = len(list(two_models[0].parameters()))
    assert sum(n.startswith("base.") for n in names) >= n_each
    assert sum(n.startswith("finetuned.") for n in names) >= n_each
    assert next(pair.parameters()).dtype == torch.float32
    state = pair.state_dict()
    assert {name.split(".")[0] for name in state} == {"base", "finetuned"}
    halves = [
        {n.split(".", 1)[1]: v for n, v in state.items() if n.startswith(side)}
        for side in ("base", "finetuned")
    ]
    assert halves[0].keys() == halves[1].keys()
    assert any(not torch.equal(halves[0][name], halves[1][name]) for name in halves[0])
    assert any("lora_A" in name for name, _ in lora_pair.named_parameters())
    with pytest.raises(TypeError, match="cannot be replaced"):
        pair.load_state_dict(state)


def test_a_pair_moves_and_keeps_its_precision(pair, tokens):
    before = pair(tokens)
    assert torch.equal(pair.to("cpu")(tokens), before)
    assert torch.equal(pair.cpu()(tokens), before)
    for change in (pair.half, pair.double, pair.bfloat16, lambda: pair.to(torch.float16)):
        with pytest.raises(TypeError, match="precision cannot be changed"):
            change()
    assert torch.equal(pair(tokens), before)
    moved = pair.to("meta")
    assert {p.device.type for p in moved.parameters()} == {"meta"}
    assert moved.device.type == moved.cfg.device == "meta"


# --- hook points ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("blocks.1.hook_resid_post", 16),
        ("blocks.1.mlp.hook_post", 32),
        ("blocks.1.attn.hook_z", 16),
        ("blocks.1.attn.hook_k", 8),
    ],
)
def test_hook_points_have_their_true_width(tokenizer, tokens, name, width):
    models = tiny_llama(), plant(tiny_llama())
    alone = [boot_bridge(model, tokenizer) for model in models]
    values = [bridge.run_with_cache(tokens)[1][name].flatten(2) for bridge in alone]
    models = tiny_llama(), plant(tiny_llama())
    pair = HookedModelPair(*(boot_bridge(model, tokenizer) for model in models), [name])
    assert (pair.width(name), pair.d_in(f"{name}.diff")) == (width, width)
    assert pair.d_in(f"{name}.concat") == 2 * width
    _, cache = pair.run_with_cache(tokens)
    assert_close(cache[f"{name}.diff"], values[1] - values[0])
    assert cache[f"{name}.concat"].shape == (*tokens.shape, 2 * width)
    put_back = pair.run_with_hooks(
        tokens, fwd_hooks=[(f"{name}.diff", lambda value, hook: torch.zeros_like(value))]
    )
    expected = alone[1].run_with_hooks(
        tokens, fwd_hooks=[(name, lambda value, hook: values[0].view_as(value))]
    )
    assert_close(put_back, expected)
    assert not torch.allclose(put_back, pair(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.attn.hook_pattern", "one vector per position"),
        ("blocks.1.attn.hook_result", "use_attn_result is False"),
    ],
)
def test_hooks_without_a_vector_per_position_are_refused(tokenizer, name, message):
    bridges = boot_bridge(tiny_llama(), tokenizer), boot_bridge(tiny_llama(1), tokenizer)
    with pytest.raises(ValueError, match=message):
        HookedModelPair(*bridges, [name])


# --- adapters that one bridge cannot switch ---------------------------------------------------------


def test_an_adapter_on_a_fused_projection_is_refused(tokenizer):
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    with quiet_peft():
        peft_model = get_peft_model(tiny_gpt2(), config)
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    with pytest.raises(ValueError, match=r"3 layers that the bridge never runs.*qkv.*load_pair"):
        HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "pissa"}, "initialised with 'pissa'"),
        ({"init_lora_weights": "olora"}, "initialised with 'olora'"),
        ({"bias": "lora_only"}, "trained biases"),
    ],
)
def test_an_adapter_that_changes_the_base_is_refused(tokenizer, options, message):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    with quiet_peft():
        peft_model = get_peft_model(tiny_llama(attention_bias=True), config)
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    with pytest.raises(ValueError, match=f"{message}.*loads the base afresh"):
        HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)


def test_other_objects_than_bridges_are_refused(tokenizer):
    bridge = boot_bridge(tiny_llama(), tokenizer)
    check = getattr(check_models, "__wrapped__", check_models)
    with pytest.raises(TypeError, match="`finetuned` must be a TransformerBridge, got a Llama"):
        check(bridge, tiny_llama(), None)
    with pytest.raises(TypeError, match="`adapter` must be a PeftModel, got a Llama"):
        check(bridge, bridge, tiny_llama())


# --- beginning of sequence ------------------------------------------------------------------------


def test_a_text_that_begins_with_bos_gets_no_second_one(two_models, tokenizer):
    bridges = [boot_bridge(model, tokenizer) for model in two_models]
    pair = HookedModelPair(*bridges, HOOKS, prepend_bos=True)
    bos = tokenizer.bos_token_id
    for text in ("ab", "<bos>ab"):
        assert pair.to_tokens(text).tolist() == [[bos, *tokenizer("ab").input_ids]]
    assert_close(pair("<bos>ab"), pair("ab"))
    assert_close(pair(["ab", "<bos>ab"])[0], pair("ab")[0])
    assert pair.generate("<bos>ab", max_new_tokens=3) == pair.generate("ab", max_new_tokens=3)
    plain = HookedModelPair(*bridges, HOOKS)
    assert plain.to_tokens("ab").tolist() == [tokenizer("ab").input_ids]


def test_bos_needs_a_tokenizer_that_has_one(two_models, tokenizer):
    bridges = [boot_bridge(model, tokenizer) for model in two_models]
    bridges[1].tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        HookedModelPair(*bridges, HOOKS, prepend_bos=True)


# --- the context, and where tokens stand -------------------------------------------------------------


def test_what_does_not_fit_the_context_is_refused(pair):
    n_ctx = pair.cfg.n_ctx
    pair(torch.zeros(1, n_ctx, dtype=torch.long))
    with pytest.raises(ValueError, match=f"context of {n_ctx}"):
        pair(torch.zeros(1, n_ctx + 1, dtype=torch.long))
    with pytest.raises(ValueError, match=f"context of {n_ctx}"):
        pair("a" * (n_ctx + 1))
    with pytest.raises(ValueError, match="more than the model's context"):
        pair.to_tokens("a" * (n_ctx + 1))
    assert pair.to_tokens("a" * (n_ctx + 1), truncate=True).shape[1] <= n_ctx
    with pytest.raises(ValueError, match="fewer new tokens"):
        pair.generate("a" * n_ctx, max_new_tokens=1)


@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_are_counted_from_the_first_token_that_is_not_padding(pair, use_cache):
    seen = []

    def look(value, hook):
        seen.append((pair.positions, pair.columns, pair.n_prompt))

    with pair.hooks(fwd_hooks=[(f"{HOOK}.diff", look)]):
        pair.generate(
            ["abcd", "ab"], max_new_tokens=3, stop_at_eos=False, use_past_kv_cache=use_cache
        )
        pair("abc")
    *steps, (positions, columns, n_prompt) = seen
    whole = torch.tensor([[0, 1, 2, 3, 4, 5], [-1, -1, 0, 1, 2, 3]])
    for i, (found, place, prompt) in enumerate(steps):
        columns_seen = range(3 + i, 4 + i) if use_cache and i else range(4 + i)
        assert place.tolist() == list(columns_seen)
        assert found.tolist() == whole[:, list(columns_seen)].tolist()
        assert prompt == 4
    assert len(steps) == 3
    assert (positions.tolist(), columns.tolist(), n_prompt) == ([[0, 1, 2]], [0, 1, 2], None)
    assert pair.positions is None


def test_tokens_are_checked_against_the_pair(pair, tokens):
    pair.check_tokens(tokens)
    pad = pair.tokenizer.pad_token_id
    left = torch.cat([torch.full((2, 2), pad), tokens], 1)
    with pytest.raises(ValueError, match="right"):
        pair.check_tokens(left)
    with pytest.raises(ValueError, match="`tokens`"):
        pair.check_tokens(tokens + 259)
    with pytest.raises(ValueError, match="context"):
        pair.check_tokens(tokens.repeat(1, 100))


def test_an_adapter_whose_layers_all_run_is_accepted(tokenizer, tokens):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
    pair = HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)
    layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert not any(layer._forward_hooks for layer in layers)
    assert pair.run_with_cache(tokens)[1][f"{HOOK}.diff"].any()
