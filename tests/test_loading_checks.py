"""Pairs of folders: right, or refused with a sentence. The judge is plain transformers and PEFT."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from diffsae_lens.pair import _verification as verification
from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._loading import boot_bridge, load_pair
from diffsae_lens.pair._model_files import resolve_model
from diffsae_lens.pair._options import LoadOptions
from tests.conftest import HOOKS, plant, tiny_llama, with_lora, write_tiny_model
from tests.test_pair_checks import tiny_gpt2

HOOK = HOOKS[1]


def save_adapter(model, path, *, train=None, **options):
    """Write an adapter with noise in every tensor it trains."""
    options = {"r": 2, "task_type": "CAUSAL_LM"} | options
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(7)
        peft_model = get_peft_model(model, LoraConfig(**options))
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad and (train is None or train in name):
                parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    peft_model.save_pretrained(path)
    return path


def plain(base, adapter, tokens, hook_layer=1):
    """Logits and residual streams of the plain base and the plain fine-tuned model, loaded afresh."""
    found = []
    for folder in (None, adapter):
        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        if folder is not None:
            with quiet_peft():
                model = PeftModel.from_pretrained(model, folder)
        out = model.eval()(tokens, output_hidden_states=True)
        found.append((out.logits.detach(), out.hidden_states[hook_layer + 1].detach()))
    return found


ADAPTERS = {
    "fused": (tiny_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}, False),
    "all-linear": (tiny_gpt2, {"target_modules": "all-linear", "fan_in_fan_out": True}, False),
    "apart": (tiny_gpt2, {"target_modules": ["c_fc"], "fan_in_fan_out": True}, True),
    "llama": (tiny_llama, {"target_modules": "all-linear"}, True),
    "dora": (tiny_llama, {"target_modules": ["q_proj"], "use_dora": True}, True),
    "pissa": (tiny_llama, {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, False),
    "olora": (tiny_llama, {"target_modules": ["q_proj"], "init_lora_weights": "olora"}, False),
    "head": (tiny_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, None),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_right_on_one_bridge_or_on_two(name, tmp_path, tokenizer, tokens, caplog):
    make, options, switched = ADAPTERS[name]
    write_tiny_model(tmp_path / "base", make(), tokenizer)
    adapter = save_adapter(make(), tmp_path / "adapter", **options)
    (base, base_state), (finetuned, finetuned_state) = plain(tmp_path / "base", adapter, tokens)
    with caplog.at_level("INFO", logger="diffsae_lens"):
        pair = load_pair(tmp_path / "base", adapter, hook_names=HOOKS)
    logits, cache = pair.run_with_cache(tokens)
    assert_close(logits, finetuned, atol=1e-4, rtol=1e-4)
    with pair.base_model() as model:
        assert_close(model(tokens), base, atol=1e-4, rtol=1e-4)
    assert_close(cache[f"{HOOK}.diff"], finetuned_state - base_state, atol=1e-4, rtol=1e-4)
    assert (finetuned - base).abs().max() > 0.01
    if switched is not None:
        assert pair.metadata.adapter == switched
        assert ("two models are made" in caplog.text) != switched


def test_trained_biases_stay_out_of_the_base(tmp_path, tokenizer, tokens):
    make = {"attention_bias": True}
    write_tiny_model(tmp_path / "base", tiny_llama(**make), tokenizer)
    options = {"target_modules": ["q_proj"], "bias": "all"}
    adapter = save_adapter(tiny_llama(**make), tmp_path / "adapter", **options)
    (base, _), (finetuned, _) = plain(tmp_path / "base", adapter, tokens)
    pair = load_pair(tmp_path / "base", adapter, hook_names=HOOKS)
    assert_close(pair(tokens), finetuned, atol=1e-4, rtol=1e-4)
    with pair.base_model() as model:
        assert_close(model(tokens), base, atol=1e-4, rtol=1e-4)
    assert not pair.metadata.adapter


def test_a_bridge_that_is_wrong_is_refused(tmp_path, tokenizer, monkeypatch):
    """A family whose bridge computes something else, made by a bridge that forgets a scale."""
    base = tiny_llama()
    write_tiny_model(tmp_path / "base", base, tokenizer)
    write_tiny_model(tmp_path / "full", plant(base), tokenizer)
    right = boot_bridge

    def wrong(model, tokenizer):
        model.model.norm.weight.data.mul_(1.2)
        return right(model, tokenizer)

    monkeypatch.setattr("diffsae_lens.pair._loading.boot_bridge", wrong)
    with pytest.raises(
        verification.MismatchError, match="`base` is not computed rightly.*differ by"
    ):
        load_pair(tmp_path / "base", tmp_path / "full", hook_names=HOOKS)


def test_weights_that_are_not_finite_are_refused(tmp_path, tokenizer):
    base = tiny_llama()
    write_tiny_model(tmp_path / "base", base, tokenizer)
    broken = plant(base)
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    write_tiny_model(tmp_path / "full", broken, tokenizer)
    with pytest.raises(ValueError, match="`finetuned` computes logits that are NaN"):
        load_pair(tmp_path / "base", tmp_path / "full", hook_names=HOOKS)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda n: n.replace("layers", "blocks"), "has no place for 12 of its tensors"),
        (lambda n: n.replace("layers.2", "layers.0.more"), "does not fit `base`"),
        (lambda n: n if "layers.1" in n else None, "does not find 8 of its tensors"),
    ],
)
def test_an_adapter_file_of_other_names_is_refused(folders, rename, message):
    file = folders / "lora" / "adapter_model.safetensors"
    state = {rename(name): tensor for name, tensor in load_file(file).items() if rename(name)}
    save_file(state, file)
    with pytest.raises(ValueError, match=message):
        load_pair(folders / "base", folders / "lora", hook_names=HOOKS)


def test_damaged_and_pickled_adapters_are_refused(folders):
    file = folders / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        load_pair(folders / "base", folders / "lora", hook_names=HOOKS)
    file.rename(file.with_name("adapter_model.bin"))
    with pytest.raises(ValueError, match=r"adapter_model\.bin, a pickle, which is not read"):
        load_pair(folders / "base", folders / "lora", hook_names=HOOKS)


def test_an_adapter_made_for_another_base_is_warned_of(folders, caplog):
    config = folders / "lora" / "adapter_config.json"
    record = json.loads(config.read_text()) | {"base_model_name_or_path": "somebody/other-base"}
    config.write_text(json.dumps(record))
    load_pair(folders / "base", folders / "lora", hook_names=HOOKS)
    assert "made for somebody/other-base, and `base` is" in caplog.text
    caplog.clear()
    config.write_text(json.dumps(record | {"base_model_name_or_path": "somebody/base"}))
    load_pair(folders / "base", folders / "lora", hook_names=HOOKS)
    assert "made for" not in caplog.text


def test_the_adapters_own_tokenizer_is_used_or_refused(folders, tokenizer, tmp_path):
    own = PreTrainedTokenizerFast.from_pretrained(folders / "base")
    own.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    own.chat_template = "{{ messages }}"
    own.save_pretrained(folders / "lora")
    with pytest.raises(
        ValueError, match=r"'<\|user\|>' at 259, but the models have embeddings for 259"
    ):
        load_pair(folders / "base", folders / "lora", hook_names=HOOKS)
    base = tiny_llama(vocab_size=272)  # rows to spare
    write_tiny_model(tmp_path / "spare", base, tokenizer)
    adapter = with_lora(base, scale=0.5)
    adapter.save_pretrained(tmp_path / "chat")
    own.save_pretrained(tmp_path / "chat")
    pair = load_pair(tmp_path / "spare", tmp_path / "chat", hook_names=HOOKS)
    assert pair.to_tokens("<|user|>").tolist() == [[259]]
    assert pair.tokenizer.chat_template == "{{ messages }}"
    swapped = json.loads((tmp_path / "chat" / "tokenizer.json").read_text())
    vocab = swapped["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(swapped))
    with pytest.raises(
        ValueError, match=r"2 ids mean two tokens, such as \d+, which is '[ab]' and '[ab]'"
    ):
        load_pair(tmp_path / "spare", tmp_path / "chat", hook_names=HOOKS)


def test_a_chat_model_may_end_its_texts_otherwise(folders, caplog):
    chat = PreTrainedTokenizerFast.from_pretrained(folders / "full")
    chat.eos_token = "<pad>"
    chat.save_pretrained(folders / "full")
    with caplog.at_level("INFO", logger="diffsae_lens"):
        pair = load_pair(folders / "base", folders / "full", hook_names=HOOKS)
    assert pair.tokenizer.eos_token == "<pad>"
    assert "differ in their eos_token" in caplog.text


def test_folders_that_hold_something_else_say_what_was_meant(folders, tmp_path):
    base, lora = folders / "base", folders / "lora"
    run = tmp_path / "run"
    for name in ("checkpoint-90", "checkpoint-500"):
        shutil.copytree(folders / "full", run / name)
    with pytest.raises(ValueError, match="did you mean .*run/checkpoint-500"):
        load_pair(base, run, hook_names=HOOKS)
    with pytest.raises(ValueError, match="is an adapter, not a model: swap"):
        load_pair(lora, base, hook_names=HOOKS)
    with pytest.raises(ValueError, match="say with `adapted_model=`"):
        load_pair(lora, lora, hook_names=HOOKS)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_pair(base / "config.json", base, hook_names=HOOKS)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folders / "full" / name).unlink(missing_ok=True)
    pair = load_pair(base, folders / "full", hook_names=HOOKS)
    assert pair.to_tokens("ab").shape == (1, 2)
    shutil.copytree(folders / "full", tmp_path / "bare")
    with pytest.raises(ValueError, match="neither model comes with a tokenizer"):
        load_pair(tmp_path / "bare", folders / "full", hook_names=HOOKS)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_named(folders, file):
    path = folders / "full" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=str(folders / "full")):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS)


def test_what_is_not_a_name_is_refused_in_a_sentence(folders):
    resolve = getattr(resolve_model, "__wrapped__", resolve_model)
    with pytest.raises(TypeError, match="named by a folder or a hub id, got a LlamaForCausalLM"):
        resolve(tiny_llama())
    with pytest.raises(TypeError, match="no option `torch_dtype`: use `dtype`"):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS, torch_dtype="float32")
    with pytest.raises(TypeError, match="no option `load_in_4bit`: use `quantization_config"):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS, load_in_4bit=True)
    with pytest.raises(ValueError, match="'bfloat16', got 'bf17'"):
        LoadOptions(dtype="bf17")


def test_a_precision_may_be_named(folders, tokens):
    pair = load_pair(folders / "base", folders / "full", hook_names=HOOKS, dtype="bfloat16")
    assert pair(tokens).dtype == torch.bfloat16
    assert pair.metadata.dtype == "bfloat16"


def test_bos_is_refused_before_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr("diffsae_lens.pair._sources.load_weights", None)
    for name in ("base", "full"):
        bare = PreTrainedTokenizerFast.from_pretrained(folders / name)
        bare.bos_token = None
        bare.save_pretrained(folders / name)
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS, prepend_bos=True)


def test_python_that_comes_with_a_model_is_never_run(folders, monkeypatch):
    marker = folders / "ran"
    (folders / "full" / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (folders / "full" / "configuration.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folders / "full" / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model",
    }  # fmt: skip
    config["model_type"] = "of_its_own"
    (folders / "full" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="brings Python of its own"):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS)
    assert not marker.exists()


def test_pickled_weights_that_hold_more_than_tensors_are_refused(folders):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(folders / "ran"), "w"))

    (folders / "full" / "model.safetensors").unlink()
    (folders / "full" / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="pickle"):
        load_pair(folders / "base", folders / "full", hook_names=HOOKS)
    assert not (folders / "ran").exists()
