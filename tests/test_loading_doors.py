"""Every door of `load_pair`: names, models, PEFT models and bridges in memory, alone and mixed.

The judge is plain transformers and PEFT; what a user gives must stay as it is.
"""

import copy
import gc
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._loading import boot_bridge, load_pair
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.pair._verification import MismatchError
from tests.conftest import HOOKS, plant, tiny_llama, with_lora, write_tiny_model
from tests.test_pair_checks import tiny_gpt2

HOOK = HOOKS[1]


def snapshot(given) -> list:
    """Whatever loading could change about a user's object."""
    model = getattr(given, "original_model", given)
    return [
        [(name, type(part), part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
         for name, part in model.named_modules()],
        [(name, p.requires_grad, p.data_ptr(), p.double().sum().item())
         for name, p in model.named_parameters()],
        model.config.to_dict() if hasattr(model.config, "to_dict") else None,
    ]  # fmt: skip


def plain(model, tokens):
    out = copy.deepcopy(model).eval()(tokens, output_hidden_states=True)
    return out.logits.detach(), out.hidden_states[2].detach()


def check(pair, base, finetuned, tokens, tolerance=1e-5):
    """Compare a pair with two plain models' logits and states."""
    logits, cache = pair.run_with_cache(tokens)
    assert_close(logits, finetuned[0], atol=tolerance, rtol=tolerance)
    with pair.base_model() as model:
        assert_close(model(tokens), base[0], atol=tolerance, rtol=tolerance)
    assert_close(cache[f"{HOOK}.diff"], finetuned[1] - base[1], atol=tolerance, rtol=tolerance)
    assert (finetuned[0] - base[0]).abs().max() > 0.01


def through(door, model, folder, tokenizer):
    """One model by one of the doors."""
    if door == "bridge":
        bridge = boot_bridge(copy.deepcopy(model), tokenizer)
        bridge("ab")  # at its first pass a bridge puts hooks on itself
        return bridge
    return {"folder": folder, "model": model}[door]


@pytest.fixture
def models(folders):
    """The models of the folders; trained, so with gradients and in training mode."""
    base = tiny_llama()
    return base.train().requires_grad_(True), plant(base).train()


# --- whole models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("door", "other"),
    [("model", "model"), ("bridge", "bridge"), ("folder", "model"), ("model", "folder"),
     ("bridge", "folder"), ("model", "bridge")],
)  # fmt: skip
def test_whole_models_come_by_any_two_doors(folders, tokenizer, tokens, models, door, other):
    base = through(door, models[0], folders / "base", tokenizer)
    finetuned = through(other, models[1], folders / "full", tokenizer)
    given = [g for g in (base, finetuned) if not isinstance(g, Path)]
    before = [snapshot(g) for g in given]
    pair = load_pair(base, finetuned, hook_names=HOOKS, tokenizer=tokenizer)
    check(pair, *(plain(m, tokens) for m in models), tokens)
    assert [snapshot(g) for g in given] == before
    assert not pair.metadata.adapter
    assert pair.to_tokens("ab").shape == (1, 2)
    assert pair.metadata.base == (
        str(folders / "base") if door == "folder" else "LlamaForCausalLM in memory"
    )


# --- adapters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["model", "bridge"])
def test_an_adapter_in_a_folder_goes_on_a_model_in_memory(folders, tokenizer, tokens, models, door):
    given = through(door, models[0], None, tokenizer)
    before = snapshot(given)
    pair = load_pair(given, folders / "lora", hook_names=HOOKS, tokenizer=tokenizer)
    adapted = with_lora(tiny_llama(), scale=0.5)
    check(pair, plain(models[0], tokens), plain(adapted, tokens), tokens)
    assert snapshot(given) == before
    assert pair.metadata.adapter


@pytest.mark.parametrize("door", ["folder", "model", "own base"])
@pytest.mark.parametrize("name", ["default", "tuned"])
def test_a_peft_model_in_memory_goes_on_any_base(folders, tokenizer, tokens, door, name):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    if name != "default":
        peft_model.add_adapter(name, peft_model.peft_config["default"])
        for key, parameter in peft_model.named_parameters():
            if f".{name}." in key:
                parameter.data.copy_(
                    2 * peft_model.get_parameter(key.replace(f".{name}.", ".default."))
                )
        peft_model.set_adapter(name)
    peft_model.train()
    before = snapshot(peft_model)
    base = peft_model.get_base_model()
    base = {"folder": folders / "base", "model": tiny_llama(), "own base": base}[door]
    pair = load_pair(base, peft_model, hook_names=HOOKS, tokenizer=tokenizer)
    check(pair, plain(tiny_llama(), tokens), plain(peft_model, tokens), tokens)
    assert snapshot(peft_model) == before
    assert pair.metadata.adapter
    assert pair.metadata.finetuned == "PeftModelForCausalLM in memory"


def fused(**options):
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(7)
        peft_model = get_peft_model(
            tiny_gpt2(), LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, **options)
        )
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return peft_model


def test_a_peft_model_that_one_bridge_cannot_switch_becomes_two_models(tokenizer, tokens, caplog):
    peft_model = fused(target_modules=["c_attn"], lora_dropout=0.3).train()
    before = snapshot(peft_model)
    with caplog.at_level("INFO", logger="diffsae_lens"):
        pair = load_pair(
            peft_model.get_base_model(), peft_model, hook_names=HOOKS, tokenizer=tokenizer
        )
    assert "two models are made" in caplog.text
    assert "save the adapter" not in caplog.text  # nothing is left to do
    check(pair, plain(tiny_gpt2(), tokens), plain(peft_model, tokens), tokens, 1e-4)
    assert torch.equal(pair(tokens), pair(tokens))
    assert snapshot(peft_model) == before


def test_a_peft_model_that_rewrote_its_base_needs_the_base_by_name(tmp_path, tokenizer, tokens):
    peft_model = fused(target_modules=["c_fc"], init_lora_weights="pissa")
    own = peft_model.get_base_model()
    with pytest.raises(ValueError, match="not the base that it was made from: give `base` by its"):
        load_pair(own, peft_model, hook_names=HOOKS, tokenizer=tokenizer)
    write_tiny_model(tmp_path / "base", tiny_gpt2(), tokenizer)
    pair = load_pair(tmp_path / "base", peft_model, hook_names=HOOKS)
    check(pair, plain(tiny_gpt2(), tokens), plain(peft_model, tokens), tokens, 1e-4)


def test_an_adapter_that_trains_biases_leaves_a_model_in_memory_alone(tmp_path, tokenizer, tokens):
    peft_model = fused(target_modules=["c_fc"], bias="all")
    for name, parameter in peft_model.named_parameters():
        if name.endswith("bias"):
            parameter.data.add_(0.1)
    peft_model.save_pretrained(tmp_path / "adapter")
    base = tiny_gpt2()
    before = snapshot(base)
    pair = load_pair(base, tmp_path / "adapter", hook_names=HOOKS, tokenizer=tokenizer)
    assert snapshot(base) == before
    check(pair, plain(base, tokens), plain(peft_model, tokens), tokens, 1e-4)


# --- memory and change -----------------------------------------------------------------------------


def pointers(model):
    return {p.data_ptr() for p in model.parameters()}


def test_weights_in_memory_are_shared_and_may_be_asked_for_elsewhere(models, tokenizer, tokens):
    pair = load_pair(*models, hook_names=HOOKS, tokenizer=tokenizer)
    assert pointers(models[0]) | pointers(models[1]) <= pointers(pair)
    half = load_pair(*models, hook_names=HOOKS, tokenizer=tokenizer, dtype="bfloat16")
    assert half(tokens).dtype == torch.bfloat16
    assert not pointers(models[0]) & pointers(half)
    assert models[0].dtype == torch.float32
    narrow = models[0].to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"have dtype torch\.bfloat16 and torch\.float32: say"):
        load_pair(narrow, models[1], hook_names=HOOKS, tokenizer=tokenizer)


def test_a_pair_does_not_run_on_weights_that_were_trained_on(models, tokenizer, tokens):
    pair = load_pair(*models, hook_names=HOOKS, tokenizer=tokenizer)
    apart = load_pair(*models, hook_names=HOOKS, tokenizer=tokenizer, dtype="float64")
    pair(tokens)
    optimizer = torch.optim.SGD(models[0].parameters(), lr=1e-3)
    models[0](tokens, labels=tokens).loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="was changed since.*make a new pair"):
        pair(tokens)
    apart(tokens)
    del models, optimizer
    gc.collect()


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_a_pair_does_not_run_on_weights_that_an_adapter_was_merged_into(tokenizer, tokens, merge):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    base = peft_model.get_base_model()
    pair = load_pair(base, peft_model, hook_names=HOOKS, tokenizer=tokenizer)
    pair(tokens)
    getattr(peft_model, merge)()  # writes to `.data`, which no version counts
    with pytest.raises(RuntimeError, match="was changed since.*make a new pair"):
        pair(tokens)


def test_hooks_stay_on_the_users_model(models, tokenizer, tokens):
    expected = plain(models[0], tokens)[0]
    ran = []
    models[0].model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    pair = load_pair(*models, hook_names=HOOKS, tokenizer=tokenizer)
    with pair.base_model() as base:
        assert_close(base(tokens), expected)
    assert not ran


# --- tokenizers -------------------------------------------------------------------------------------


def test_a_tokenizer_made_in_memory_works(models, tokenizer):
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>"
    )
    made.chat_template = "{{ messages[0]['content'] }}"
    assert not made.name_or_path
    pair = load_pair(*models, hook_names=HOOKS, tokenizer=made)
    assert pair.to_tokens("ab").tolist() == [tokenizer("ab").input_ids]
    assert pair.tokenizer.chat_template == made.chat_template
    folder = Path(pair.tokenizer.name_or_path)
    assert folder.is_dir()
    assert not made.name_or_path
    assert boot_bridge(tiny_llama(), made).to_tokens("ab", prepend_bos=False).shape == (1, 2)
    del pair
    gc.collect()
    assert not folder.exists()


def test_tokens_added_in_memory_are_not_lost(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    own.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    base = tiny_llama(vocab_size=272)
    pair = load_pair(base, plant(base), hook_names=HOOKS, tokenizer=own)
    assert pair.to_tokens("<|user|>").tolist() == [[259]]


def test_models_in_memory_know_where_they_were_loaded_from(folders):
    base, full = (AutoModelForCausalLM.from_pretrained(folders / n) for n in ("base", "full"))
    pair = load_pair(base, full, hook_names=HOOKS)
    assert pair.to_tokens("ab").shape == (1, 2)
    assert (pair.metadata.base, pair.metadata.finetuned) == (
        str(folders / "base"),
        str(folders / "full"),
    )
    pair = load_pair(tiny_llama(), full, hook_names=HOOKS, tokenizer=folders / "base")
    assert pair.to_tokens("ab").shape == (1, 2)


# --- multimodal wrappers ----------------------------------------------------------------------------


def tiny_gemma3(seed=0):
    text = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "pad_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.18)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("door", ["folder", "model"])
def test_a_multimodal_model_is_read_through_its_text_model(tmp_path, tokenizer, tokens, door):
    base, finetuned = tiny_gemma3(), tiny_gemma3()
    for layer in finetuned.model.language_model.layers:
        layer.mlp.down_proj.weight.data += 0.05
    expected = [plain(model, tokens) for model in (base, finetuned)]
    given = [base, finetuned]
    if door == "folder":
        given = [write_tiny_model(tmp_path / str(i), m, tokenizer) for i, m in enumerate(given)]
    pair = load_pair(*given, hook_names=HOOKS, tokenizer=tokenizer)
    check(pair, *expected, tokens)
    with pytest.raises(ValueError, match="beyond the model's 3 layers"):
        load_pair(*given, hook_names=["blocks.3.hook_resid_post"], tokenizer=tokenizer)


# --- devices and quantisation -----------------------------------------------------------------------


def test_a_device_map_names_one_device(folders, tokens):
    for one in ("auto", "cpu", {"": "cpu"}):
        assert LoadOptions(device_map=one).named_device in ("cpu", "cuda", "mps")
    load_pair(folders / "base", folders / "full", hook_names=HOOKS, device_map={"": "cpu"})
    with pytest.raises(ValueError, match=r"must name one device.*got \['cpu', 'cuda:0'\]"):
        LoadOptions(device_map={"model.embed_tokens": 0, "model.layers": "cpu"})
    with pytest.raises(ValueError, match="either `device` or `device_map`"):
        LoadOptions(device="cpu", device_map="cpu")


def test_auto_is_refused_where_it_would_spread(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="spread the models over 4 devices.*device='cuda:0'"):
        LoadOptions(device_map="auto")


def test_quantisation_reaches_the_loader(folders, monkeypatch, tokens):
    """With a stand-in for bitsandbytes: the weights are loaded plain, and marked as packed."""
    config = BitsAndBytesConfig(load_in_8bit=True)
    real, seen = AutoModelForCausalLM.from_pretrained, []

    def load(path, *, quantization_config, device_map, **kwargs):
        seen.append((quantization_config, device_map))
        model = real(path, **kwargs)
        model.config.quantization_config = quantization_config
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    pair = load_pair(
        folders / "base", folders / "full", hook_names=HOOKS, quantization_config=config
    )
    assert seen == [(config, {"": torch.device("cpu")})] * 2
    pair(tokens)
    pair = load_pair(
        folders / "base", folders / "lora", hook_names=HOOKS, quantization_config=config
    )
    assert pair.metadata.adapter


def test_a_quantised_model_is_not_compared_with_another(folders, tokenizer):
    packed = tiny_llama()
    packed.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="`base` is quantised and `finetuned` is not"):
        load_pair(packed, folders / "full", hook_names=HOOKS, tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match="stays on its device and in its precision, float32 on cpu"
    ):
        load_pair(
            packed, copy.deepcopy(packed), hook_names=HOOKS, tokenizer=tokenizer, dtype="float64"
        )
    with pytest.raises(ValueError, match="needs a package that is not here.*bitsandbytes"):
        load_pair(
            folders / "base", folders / "full", hook_names=HOOKS,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )  # fmt: skip


def test_an_adapter_is_not_merged_into_packed_weights(tokenizer):
    peft_model = fused(target_modules=["c_attn"])
    peft_model.get_base_model().config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(ValueError, match="merged into quantised weights it would be rounded"):
        load_pair(peft_model.get_base_model(), peft_model, hook_names=HOOKS, tokenizer=tokenizer)


# --- what is refused --------------------------------------------------------------------------------


class HookedTransformer(torch.nn.Module):
    """Stands for TransformerLens's, which version 4 no longer has."""


def test_what_is_no_door_is_refused_in_a_sentence(folders, tokenizer, models, no_shape_checks):
    full = folders / "full"
    with pytest.raises(TypeError, match=r"`base` must be .*got a HookedTransformer, whose weights"):
        load_pair(HookedTransformer(), full, hook_names=HOOKS)
    with pytest.raises(TypeError, match=r"a DataParallel; take off what a trainer.*model\.module"):
        load_pair(full, torch.nn.DataParallel(models[1]), hook_names=HOOKS)
    with pytest.raises(TypeError, match="`finetuned` must be the name of a model.*got a int"):
        load_pair(full, 3, hook_names=HOOKS)
    with pytest.raises(ValueError, match="are one object.*merge_and_unload"):
        load_pair(models[0], models[0], hook_names=HOOKS, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="neither model comes with a tokenizer.*`tokenizer=`"):
        load_pair(*models, hook_names=HOOKS)


def test_adapters_in_the_wrong_place_are_refused(folders, tokenizer):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    under = peft_model.get_base_model()
    with pytest.raises(ValueError, match="is an adapter, not a model: swap"):
        load_pair(peft_model, folders / "full", hook_names=HOOKS)
    with pytest.raises(ValueError, match="`base` is a model with adapters inside it"):
        load_pair(under, folders / "full", hook_names=HOOKS, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="`finetuned` is a model with adapters inside it"):
        load_pair(folders / "base", under, hook_names=HOOKS)
    bridge = boot_bridge(copy.deepcopy(peft_model).get_base_model(), tokenizer)
    with pytest.raises(ValueError, match="cannot be taken apart.*PeftModel it was made of"):
        load_pair(folders / "base", bridge, hook_names=HOOKS)
    peft_model.merge_adapter()
    with pytest.raises(ValueError, match=r"is merged into the base; call.*unmerge_adapter\(\)"):
        load_pair(folders / "base", peft_model, hook_names=HOOKS)
    with quiet_peft():
        other = get_peft_model(tiny_llama(), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="IA3 adapter 'default'; only LORA"):
        load_pair(folders / "base", other, hook_names=HOOKS)


def test_a_bridge_with_other_weights_is_refused(folders, tokenizer):
    bridge = boot_bridge(tiny_llama(), tokenizer)
    bridge.add_hook("blocks.0.hook_resid_post", lambda value, hook: value + 1)
    with pytest.raises(MismatchError, match=r"hooks on it \(`reset_hooks\(\)`\)"):
        load_pair(bridge, folders / "full", hook_names=HOOKS)
    bridge.reset_hooks()
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match="compatibility mode has folded and centred weights"):
        load_pair(bridge, folders / "full", hook_names=HOOKS)


def test_a_model_on_two_devices_is_refused(folders, tokenizer):
    spread = tiny_llama()
    spread.lm_head.to("meta")
    with pytest.raises(ValueError, match="`base` is on cpu, meta; a pair is on one device"):
        load_pair(spread, folders / "full", hook_names=HOOKS)


@pytest.fixture
def two_adapters(tmp_path, tokenizer):
    """A base and two LoRA adapters of it, each in a folder."""
    write_tiny_model(tmp_path / "base", tiny_llama(), tokenizer)
    for name, seed in (("sft", 2), ("dpo", 3)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        with_lora(model, scale=0.5, seed=seed).save_pretrained(tmp_path / name)
    return tmp_path


def test_two_adapters_of_one_base_in_folders(two_adapters, tokens):
    pair = load_pair(two_adapters / "sft", two_adapters / "dpo", hook_names=HOOKS)
    sides = [plain(with_lora(tiny_llama(), scale=0.5, seed=seed), tokens) for seed in (2, 3)]
    check(pair, *sides, tokens)
    assert pair._models[0] is pair._models[1]
    assert (pair.metadata.base, pair.metadata.finetuned) == (
        str(two_adapters / "sft"), str(two_adapters / "dpo"),
    )  # fmt: skip
    alone = load_pair(two_adapters / "base", two_adapters / "sft", hook_names=HOOKS)
    assert alone.metadata.finetuned_fingerprint == pair.metadata.base_fingerprint


@pytest.mark.parametrize("name", ["base", "sft"])
def test_what_is_compared_with_itself_is_a_null_pair(two_adapters, caplog, name):
    load_pair(two_adapters / "base", two_adapters / "sft", hook_names=HOOKS)
    assert "null pair" not in caplog.text
    load_pair(two_adapters / name, two_adapters / name, hook_names=HOOKS)
    assert "compute the same: a null pair" in caplog.text


def test_two_adapters_that_cannot_be_switched_are_merged_each(two_adapters, tokens, caplog):
    caplog.set_level("INFO", "diffsae_lens")
    model = AutoModelForCausalLM.from_pretrained(two_adapters / "base")
    config = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    with quiet_peft():
        peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.add_(0.3)
    peft_model.save_pretrained(two_adapters / "pissa")
    pair = load_pair(two_adapters / "sft", two_adapters / "pissa", hook_names=HOOKS)
    assert "two models are made of" in caplog.text
    check(
        pair, plain(with_lora(tiny_llama(), scale=0.5), tokens), plain(peft_model, tokens), tokens
    )


def test_the_model_under_two_adapters_is_named_by_them_or_by_the_user(
    two_adapters, tokens, tmp_path
):
    config = two_adapters / "dpo" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(two_adapters / "base"), "elsewhere"))
    paths = two_adapters / "sft", two_adapters / "dpo"
    with pytest.raises(
        ValueError,
        match="say with `adapted_model=` which model both sit on.*merged in, that model is",
    ):
        load_pair(*paths, hook_names=HOOKS)
    pair = load_pair(*paths, hook_names=HOOKS, adapted_model=two_adapters / "base")
    assert pair(tokens).isfinite().all()
    with pytest.raises(ValueError, match="is an adapter itself"):
        load_pair(*paths, hook_names=HOOKS, adapted_model=paths[0])
    with pytest.raises(ValueError, match="`adapted_model` is for two adapters"):
        load_pair(two_adapters / "base", paths[1], hook_names=HOOKS, adapted_model="x")
