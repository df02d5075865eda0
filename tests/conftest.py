"""Tiny random models whose truth is known, and the one real model, loaded once.

Heavy packages are imported where they are used: the process that hands the tests out never needs them.
"""

from __future__ import annotations

import copy
import gc
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import shapes  # noqa: F401  # named by `--jaxtyping-packages`, which does not import it

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from diffsae_lens.pair._hooked import HookedModelPair

D_MODEL, N_LAYERS = 16, 3
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # the workers share the cores; tiny models gain nothing from two
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect no doctests from what is no test: benchmarks import what few have installed."""
    here = Path(__file__).parent
    if collection_path.suffix != ".py" or not collection_path.is_relative_to(here):
        return None
    return not collection_path.name.startswith("test_") or None


def pytest_collection_finish() -> None:
    """Spare every later garbage collection the million objects that the imports made."""
    gc.collect()
    gc.freeze()


def byte_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in a folder, where the bridge wants to find one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<bos>", "<eos>", "<pad>"]
    core = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@contextmanager
def running(pair, edit):
    """Open one edit, or none, and yield the pair that it runs."""
    if edit is None:
        yield pair
    else:
        with edit:
            yield edit.pair


def tiny_llama(seed: int = 0, **overrides) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": 259, "hidden_size": D_MODEL, "intermediate_size": 32,
            "num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "attn_implementation": "eager",
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
        }
        | overrides
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # larger than init: outputs must differ visibly
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.15)
    return model.eval().requires_grad_(False)


def plant(model: LlamaForCausalLM, *, scale: float = 0.5, seed: int = 1) -> LlamaForCausalLM:
    """A copy of the model with a planted low-rank change in every MLP."""
    import torch

    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for layer in changed.model.layers:
        weight = layer.mlp.down_proj.weight.data
        left = torch.randn(weight.shape[0], 1, generator=generator)
        right = torch.randn(1, weight.shape[1], generator=generator)
        weight += scale * left @ right / weight.shape[1] ** 0.5
    return changed


@pytest.fixture
def two_models(tokenizer):
    """Base and fine-tuned transformers models; the bridges below wrap copies of them."""
    base = tiny_llama()
    return base, plant(base)


def hooked(base: LlamaForCausalLM, finetuned: LlamaForCausalLM, tokenizer) -> HookedModelPair:
    from diffsae_lens.pair._hooked import HookedModelPair
    from diffsae_lens.pair._loading import boot_bridge

    return HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)


def state(pair: HookedModelPair) -> tuple:
    """Whatever a test could change about a pair: weights, gradients, hooks, modes, attributes."""
    import torch

    bridges = list(dict.fromkeys(pair._models))
    models = [bridge.original_model for bridge in bridges]
    parameters = [p for model in models for p in model.parameters()]
    devices = [str(p.device) for p in parameters]
    if "meta" in devices:  # there is nothing to sum
        return (devices,)
    modules = [module for model in (pair, *bridges, *models) for module in model.modules()]
    sums = [torch.stack([p.double().sum(), p.double().square().sum()]) for p in parameters]
    hooks = ("_forward_hooks", "_backward_hooks", "fwd_hooks", "bwd_hooks")
    return (
        devices,
        torch.stack(sums).tolist(),
        [(p.requires_grad, p.grad is None) for p in parameters],
        [(m.training, *(len(getattr(m, name, ())) for name in hooks)) for m in modules],
        {name: id(value) for name, value in vars(pair).items() if not name.startswith("_")},
        [(id(b.tokenizer), b.tokenizer.padding_side, str(b.cfg)) for b in bridges],
    )


_shared: dict[str, tuple[HookedModelPair, tuple]] = {}


def shared(name: str, make: Callable[[], HookedModelPair]) -> Iterator[HookedModelPair]:
    """Lend a pair, which takes a while to make, to one test after the other until one changes it."""
    if name not in _shared:
        made = make()
        _shared[name] = (made, state(made))
    made, before = _shared[name]
    yield made
    if state(made) != before:
        del _shared[name]


@pytest.fixture
def pair(tokenizer) -> Iterator[HookedModelPair]:
    def make() -> HookedModelPair:
        base = tiny_llama()
        return hooked(base, plant(base), tokenizer)

    yield from shared("full", make)


@pytest.fixture
def long_pair(tokenizer) -> Iterator[HookedModelPair]:
    """Byte-level prompts are long: models with the context for them."""

    def make() -> HookedModelPair:
        base = tiny_llama(max_position_embeddings=1024)
        return hooked(base, plant(base), tokenizer)

    yield from shared("long", make)


def with_lora(model: LlamaForCausalLM, *, scale: float, seed: int = 2):
    """The model wrapped with a LoRA adapter whose B is `scale` times noise (0: no change)."""
    import torch
    from peft import LoraConfig, get_peft_model

    from diffsae_lens.pair._adapters import quiet_peft

    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with quiet_peft():
        peft_model = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:  # PEFT draws A from the global generator
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(noise if "lora_A" in name else scale * noise)
    return peft_model.eval().requires_grad_(False)


@pytest.fixture
def lora_pair(tokenizer) -> Iterator[HookedModelPair]:
    from diffsae_lens.pair._hooked import HookedModelPair
    from diffsae_lens.pair._loading import boot_bridge

    def make() -> HookedModelPair:
        peft_model = with_lora(tiny_llama(), scale=0.5)
        bridge = boot_bridge(peft_model.get_base_model(), tokenizer)
        return HookedModelPair(bridge, bridge, HOOKS, adapter=peft_model)

    yield from shared("LoRA", make)


@pytest.fixture
def tokens() -> torch.Tensor:
    import torch

    return torch.randint(3, 259, (2, 7), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def real_pair() -> HookedModelPair:
    """The embedded SmolLM2-135M against the shipped year-trigger organism, layers 18 and 24."""
    from diffsae_lens.pair._loading import load_pair

    return load_pair(
        "smollm2-135m",
        "year-trigger",
        hook_names=["blocks.18.hook_resid_post", "blocks.24.hook_resid_post"],
    )


def write_tiny_model(path: Path, model: LlamaForCausalLM, tokenizer) -> Path:
    """Save a tiny model as a folder that `load_pair` takes."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory, tokenizer) -> Path:
    """What `folders` copies."""
    path = tmp_path_factory.mktemp("folders")
    base = tiny_llama()
    write_tiny_model(path / "base", base, tokenizer)
    write_tiny_model(path / "full", plant(base), tokenizer)
    with_lora(base, scale=0.5).save_pretrained(path / "lora")
    return path


@pytest.fixture
def folders(tmp_path, written) -> Path:
    """A base, a full fine-tune of it and a LoRA adapter, each in a folder."""
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def no_shape_checks():
    """As outside the tests: annotations are not enforced, so that the package's own messages are seen."""
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
