"""Ways to fine-tune: whole models, and adapters with each of PEFT's options.

What an adapter trains gets random values that show, so that no variant equals its base.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS,
)
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from diffsae_lens.pair._loading import boot_bridge
from tests.families.models import (
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    Family,
    plant,
    read_model,
    write_model,
)

TOKENS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
"""What the campaign reads, `[batch, pos]`."""
TRAINED_NOISE = 0.1  # std added to every trained parameter of an adapter
WEIGHTS = "adapter_model.safetensors"
# Where PEFT has no default of its own for a family: the attention's inputs, fused or not.
ATTENTION_INPUTS = (
    r".*\.(q_proj|v_proj|q_b_proj|kv_b_proj|qkv_proj|query_key_value|Wqkv|c_attn|in_proj|key|value)"
)
EMBEDDING, HEAD = "EMBEDDING", "HEAD"  # stand for the family's own names in a LoRA's fields


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a fine-tuned model of a base."""

    full: bool = False
    """A whole model; else an adapter."""
    lora: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `LoraConfig` beside rank and scale."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the fine-tuned model's config (of an adapter: of the model it was made for)."""
    change: Callable[[Any], Any] | None = None
    """What happens to the fine-tuned model before it is saved."""
    spoil: Callable[[Path], None] | None = None
    """What happens to the saved adapter."""
    must_be_refused: bool = False
    """Whether there is no right answer."""
    generating: bool = False
    """Whether the pair is judged while it generates, each model with a cache of its own."""
    door: Callable[[Path, Path], tuple[Any, Any]] | None = None
    """What `load_pair` is given in place of the two folders."""

    def write(self, family: Family, base: Path, folder: Path) -> Path:
        """Save the fine-tuned model or adapter.

        Raises:
            ValueError: PEFT has no such adapter for this family.
        """
        if self.full:
            model = plant(_with_config(family, self.config, base))
            return write_model(self.change(model) if self.change else model, folder)
        model = family.build(**self.config) if self.config else read_model(base)
        adapter = self._adapter(family, model)
        if self.change:
            self.change(adapter)
        adapter.save_pretrained(folder)
        if self.spoil:
            self.spoil(folder)
        return folder

    def _adapter(self, family: Family, model: Any) -> Any:
        fields: dict[str, Any] = {name: _named(value, family) for name, value in self.lora.items()}
        # PEFT has a default for Mixtral, and does not apply it to a model of transformers 5.
        has_default = family.model_type in DEFAULT_TARGETS and family.model_type != "mixtral"
        if not has_default:
            fields = {"target_modules": ATTENTION_INPUTS} | fields
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **fields)
        with torch.random.fork_rng():  # PEFT draws A from the global generator
            torch.manual_seed(2)
            adapter = get_peft_model(model, config)
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    parameter.data += TRAINED_NOISE * torch.randn_like(parameter)
        return adapter.eval()


def _with_config(family: Family, config: Mapping[str, Any], base: Path) -> Any:
    """The base's weights in a model of another config."""
    model = read_model(base)
    if not config:
        return model
    other = family.build(**config)
    other.load_state_dict(model.state_dict())
    return other


def _named(value: Any, family: Family) -> Any:
    """Put the family's own module names in."""
    names = {EMBEDDING: family.embedding, HEAD: family.head}
    if isinstance(value, list):
        return [names.get(item, item) for item in value]
    if isinstance(value, dict):
        return {names.get(key, key): item for key, item in value.items()}
    return value


def _rewrite(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Rename the tensors of a saved adapter; those renamed to None go."""
    tensors = {rename(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({n: t for n, t in tensors.items() if n is not None}, folder / WEIGHTS)


def _prefixed(name: str) -> str:
    return name.replace("base_model.model.", "base_model.model.module.", 1)


def _without_last_layer(name: str) -> str | None:
    return None if f".{N_LAYERS - 1}." in name else name


def _write_random_start(folder: Path, *, rename: Callable[[str], str | None]) -> None:
    """An adapter that starts random, so that weights which are not found do not show as zeros."""
    _rewrite(folder, rename)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"init_lora_weights": False}), encoding="utf-8")


def _write_ia3(folder: Path) -> None:
    """Put an adapter of another kind in the LoRA's place."""
    model = get_peft_model(FAMILIES["llama"].build(), IA3Config(task_type="CAUSAL_LM"))
    (folder / WEIGHTS).unlink()
    model.save_pretrained(str(folder))


ALL_LINEAR = {"target_modules": "all-linear"}
DROPOUT = {"lora_dropout": 0.3}
EXPERT_MATRICES = {
    "target_modules": [],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}

GENERAL: dict[str, Variant] = {
    "full": Variant(full=True),
    "LoRA": Variant(),
    "LoRA, all linear": Variant(lora=ALL_LINEAR),
    "full, generating": Variant(full=True, generating=True),
}
"""For every family."""

SPECIAL: dict[str, Variant] = {
    "full, saved in bfloat16": Variant(full=True, change=lambda model: model.to(torch.bfloat16)),
    "PiSSA": Variant(lora={"init_lora_weights": "pissa"}),
    "OLoRA": Variant(lora={"init_lora_weights": "olora"}),
    "DoRA": Variant(lora=ALL_LINEAR | {"use_dora": True}),
    "rsLoRA": Variant(lora={"use_rslora": True}),
    'bias="all"': Variant(lora={"bias": "all"}),
    'bias="lora_only"': Variant(lora={"bias": "lora_only"}),
    "head trained whole": Variant(lora={"modules_to_save": [HEAD]}),
    "embedding trained whole": Variant(lora={"modules_to_save": [EMBEDDING]}),
    "LoRA on embedding and head": Variant(lora={"target_modules": [EMBEDDING, HEAD]}),
    "two tokens trained": Variant(
        lora={"trainable_token_indices": {EMBEDDING: [int(TOKENS[0, 1]), int(TOKENS[1, 2])]}}
    ),
    "dropout 0.3": Variant(lora=ALL_LINEAR | DROPOUT),
    "dropout, saved while training": Variant(lora=DROPOUT, change=lambda model: model.train()),
    "one layer alone": Variant(lora={"layers_to_transform": [1]}),
    "ranks and scales by layer": Variant(
        lora=ALL_LINEAR | {"rank_pattern": {r".*\.1\..*": 2}, "alpha_pattern": {r".*\.0\..*": 1}}
    ),
    "names of another model": Variant(
        spoil=partial(_rewrite, rename=_prefixed), must_be_refused=True
    ),
    "names of another model, random start": Variant(
        spoil=partial(_write_random_start, rename=_prefixed), must_be_refused=True
    ),
    "a layer's weights missing": Variant(
        spoil=partial(_rewrite, rename=_without_last_layer), must_be_refused=True
    ),
}
"""For a few families."""

WIDER = {"hidden_size": 64, "n_embd": 64}
DEEPER = {"num_hidden_layers": N_LAYERS + 2, "n_layer": N_LAYERS + 2}


def _models(base: Path, finetuned: Path) -> tuple[Any, Any]:
    return read_model(base), read_model(finetuned)


def _bridges(base: Path, finetuned: Path) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return boot_bridge(read_model(base), tokenizer), boot_bridge(read_model(finetuned), tokenizer)


def _peft_model(base: Path, adapter: Path) -> tuple[Any, Any]:
    peft_model = PeftModel.from_pretrained(read_model(base), str(adapter))
    return peft_model.get_base_model(), peft_model


def _on_a_model(base: Path, adapter: Path) -> tuple[Any, Any]:
    return read_model(base), adapter


DOORS: dict[str, Variant] = {
    "two models in memory": Variant(full=True, door=_models),
    "two bridges": Variant(full=True, door=_bridges),
    "PEFT model on its base": Variant(lora=ALL_LINEAR, door=_peft_model),
    "adapter on a model in memory": Variant(lora=ALL_LINEAR, door=_on_a_model),
}
"""For a few families: what is no folder."""
DOOR_FAMILIES = (
    "llama", "llama-tied", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "phi3", "gemma2",
    "gemma3_text", "falcon", "mixtral",
)  # fmt: skip

PARTICULAR: dict[str, dict[str, Variant]] = {
    "llama": {
        "full, another rope": Variant(
            full=True,
            config={"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        ),
        "IA3": Variant(spoil=_write_ia3, must_be_refused=True),
    },
    "llama-tied": {
        "full, head of its own": Variant(full=True, config={"tie_word_embeddings": False}),
    },
    "gpt2": {
        "LoRA on Conv1D": Variant(
            lora={"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
        ),
    },
    "mixtral": {"LoRA on experts' matrices": Variant(lora=EXPERT_MATRICES)},
    "qwen3_moe": {"LoRA on experts' matrices": Variant(lora=EXPERT_MATRICES)},
}
"""For one family."""

SPECIAL_FAMILIES = ("llama", "llama-tied", "llama-bias", "gpt2", "gpt_neox", "qwen2")


def _for_other_sizes(family: Family) -> dict[str, Variant]:
    """Adapters made for a wider and for a deeper model."""
    return {
        f"made for a {word} model": Variant(
            config={name: n for name, n in sizes.items() if name in family.config},
            must_be_refused=True,
        )
        for word, sizes in (("wider", WIDER), ("deeper", DEEPER))
    }


def variants(family: str) -> dict[str, Variant]:
    """Return the variants that are tried on a family."""
    special = SPECIAL | _for_other_sizes(FAMILIES[family]) if family in SPECIAL_FAMILIES else {}
    doors = DOORS if family in DOOR_FAMILIES else {}
    return GENERAL | special | PARTICULAR.get(family, {}) | doors
