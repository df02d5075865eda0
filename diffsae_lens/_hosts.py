"""Every use of internals that torch, PEFT, SAELens, transformers and IPython do not promise to keep.

One function per use. Its docstring names the host, the version in which it was read, the internals used
and why no public API does. `tests/test_hosts.py` has one test per function, which says what moved when a
new version breaks it. Imports nothing from the package.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# --- torch ------------------------------------------------------------------------------------------


def tensor_version(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place.

    torch 2.13, `Tensor._version`. It shows that a hook edited a value in place and returned it, and that
    unchanged weights need not be checked again. Inference tensors keep no version.
    """
    return tensor._version


def storage_users(tensor: Tensor) -> int:
    """Return how many tensors share a tensor's memory.

    torch 2.13, `torch._C._storage_Use_Count` and `UntypedStorage._cdata`, by which CUDA graphs decide
    that memory is free. No public API counts them, and memory must not be reused while it is in use.
    """
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


def has_gradient_hooks(tensor: Tensor) -> bool:
    """Return whether a leaf tensor has hooks on its gradient.

    torch 2.13, `Tensor._backward_hooks`. SAELens replaces parameters when it loads a checkpoint, and a
    hook must be registered only once: no public API says whether `register_hook` was called.
    """
    return bool(tensor._backward_hooks)


def apply_to_tensors(
    module: torch.nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool
) -> None:
    """Apply a function to a module's tensors, as `to`, `cuda`, `half` and the like do.

    torch 2.13, `Module._apply`, which all of them call and which a pair overrides: its models are
    outside its module tree, so it has to forward the call.
    """
    module._apply(fn, recurse)


def use_fused_step(optimizer: torch.optim.Optimizer) -> None:
    """Make an existing Adam pass over weights, gradients and moments once instead of ten times.

    torch 2.13, the key `fused` of `Optimizer.param_groups`, which `Adam.step` reads. SAELens creates the
    optimiser and offers no option for it.
    """
    for group in optimizer.param_groups:
        group["fused"] = True


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """Return the containers of all hooks in a module and its submodules.

    torch 2.13, the attributes of `Module` whose names end in `_hooks`. A copy of a user's model must not
    run the user's hooks, nor copy what they are bound to; no public API copies a module without them.
    """
    return [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name.endswith("_hooks") and isinstance(value, dict)
    ]


# --- PEFT -------------------------------------------------------------------------------------------


def switch_adapter(layer: Any, active: Sequence[str]) -> tuple[str, ...]:
    """Activate one layer's adapters of these names, or none; return those that were active before.

    PEFT 0.21, `_disable_adapters` and `_active_adapter` of `BaseTunerLayer` and of
    `AuxiliaryTrainingWrapper`, which `disable_adapters` and `active_adapters` expose read-only.
    `PeftModel.disable_adapter` walks all modules four times, a third of a generation step, and
    `enable_adapters` and `set_adapter` change what requires a gradient.
    """
    before = () if layer.disable_adapters else tuple(layer.active_adapters)
    layer._disable_adapters = not active
    if active:
        layer._active_adapter = list(active)
    return before


# --- TransformerLens --------------------------------------------------------------------------------


def tensors_of_bridge(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model that a bridge has wrapped, by their names in transformers.

    TransformerLens 3.9: a bridge replaces each submodule with a component, which keeps the submodule as
    `_original_component`. Without that step in the path, the names are the model's own; the components'
    names are returned as well.
    """
    tensors = {}
    for named in (model.named_buffers, model.named_parameters):
        for name, tensor in named(remove_duplicate=False):
            tensors[name.replace("._original_component", "")] = tensor
    return tensors


_hook_points: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def _points(bridge: Any, names: Iterable[str]) -> list[Any]:
    """Return hook points of a bridge, each looked up once: `hook_dict` rebuilds all names on every access."""
    known = _hook_points.setdefault(bridge, {})
    if missing := [name for name in names if name not in known]:
        there = bridge.hook_dict
        known |= {name: there[name] for name in missing}
    return [known[name] for name in names]


@contextmanager
def hooks_on(bridge: Any, hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Add forward hooks to a bridge for the duration of a `with`, as `TransformerBridge.hooks` does.

    transformer-lens 3.9, `TransformerBridge.context_level` and the `level` of a `HookPoint`'s hooks, by
    which `hooks` tells its own hooks from others. `hooks` rebuilds the names of all hook points on every
    call, a sixth of the generation time of a small model.
    """
    points = _points(bridge, [name for name, _ in hooks])
    level = bridge.context_level + 1
    bridge.context_level = level
    try:
        for point, (_, hook) in zip(points, hooks, strict=True):
            point.add_hook(hook, level=level)
        yield
    finally:
        for point in points:
            point.remove_hooks("fwd", level=level)
        bridge.context_level = level - 1


@contextmanager
def bare_where_unhooked(bridge: Any, sites: Iterable[str], attention: str) -> Iterator[None]:
    """Run a bridge's components without hooks as plain transformers modules inside a `with`.

    transformer-lens 3.9: a component calls its `original_component` between its hook points, or computes
    the same step by step for them; norms do both. An instance attribute `forward` takes precedence over
    the class's. transformers 5.23, `config._attn_implementation`, which every pass reads. No public API
    bypasses hook points.

    Args:
        bridge: the bridge; components with hooks on them or inside them stay, and for a block only its
            own hooks count.
        sites: names of hook points that are about to get hooks.
        attention: the attention implementation to use if none of the bridge's attention stays.
    """
    from transformer_lens.model_bridge.generalized_components import AttentionBridge, BlockBridge
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    to_come = _points(bridge, list(sites))
    model = bridge.original_model
    components = [part for part in model.modules() if isinstance(part, GeneralizedComponent)]
    hooked = {
        part
        for part in components
        if any(
            point.fwd_hooks or point.bwd_hooks or any(point is each for each in to_come)
            for point in part.get_hooks().values()
        )
    }
    bare = [
        part
        for part in components
        if part not in hooked
        and part.original_component is not None
        and (isinstance(part, BlockBridge) or hooked.isdisjoint(part.modules()))
    ]
    left = set(components).difference(bare)
    before = model.config._attn_implementation
    if not any(isinstance(part, AttentionBridge) for part in left):
        model.config._attn_implementation = attention
    for part in bare:
        vars(part)["forward"] = part.original_component
    try:
        yield
    finally:
        for part in bare:
            del vars(part)["forward"]
        model.config._attn_implementation = before


# --- SAELens ----------------------------------------------------------------------------------------


def registered_architectures() -> tuple[frozenset[str], frozenset[str]]:
    """Return the architectures that SAELens can load, for inference and for training.

    SAELens 6.54, the keys of `sae_lens.registry.SAE_CLASS_REGISTRY` and `SAE_TRAINING_CLASS_REGISTRY`.
    Checked before a file is read, so that the message can say what to import.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    return frozenset(SAE_CLASS_REGISTRY), frozenset(SAE_TRAINING_CLASS_REGISTRY)


def forget_registration(architecture: str, sae: type) -> None:
    """Remove a class from SAELens's registries, if present, so that it can be registered again.

    SAELens 6.54, the entries `(class, config class)` of the registries. SAELens refuses any second
    registration, which breaks re-run cells and reloaded modules. A different class under the same name
    stays.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    for registry in (SAE_TRAINING_CLASS_REGISTRY, SAE_CLASS_REGISTRY):
        known: Any = registry.get(architecture, (None,))[0]
        same = known is not None and known.__qualname__ == sae.__qualname__
        if same and known.__module__ == sae.__module__:
            del registry[architecture]


def adam_of(trainer: Any) -> torch.optim.Adam:
    """Return the optimiser that a `SAETrainer` created.

    SAELens 6.54, `SAETrainer.optimizer`. The trainer's config does not expose its settings.
    """
    return trainer.optimizer


def normalize_with(trainer: Any, whitening: Any) -> None:
    """Make a `SAETrainer` normalise activations, and fold that into the weights at the end.

    SAELens 6.54, `SAETrainer.activation_scaler.whitening`, an `ActivationWhitening`. SAELens estimates
    its own from the first batches and does not know about two models.
    """
    trainer.activation_scaler.whitening = whitening


def go_past_checkpoint(trainer: Any) -> None:
    """Advance a `MultiSAETrainer` that has loaded a checkpoint to just after it wrote that checkpoint.

    SAELens 6.54: a checkpoint is written before `n_training_steps` (of the trainer and of each of
    `trainers`) is incremented, and `checkpoint_thresholds` still holds the checkpoints already written.
    SAELens restores neither, nor `data_provider`.
    """
    trainer.n_training_steps += 1
    for one in trainer.trainers.values():
        one.n_training_steps += 1
    trainer.checkpoint_thresholds = [
        n for n in trainer.checkpoint_thresholds if n >= trainer.n_training_samples
    ]


# --- huggingface_hub --------------------------------------------------------------------------------


def hub_error() -> type[Exception]:
    """Return the base class of all hub errors: failed connections and refused requests.

    huggingface_hub 2.4, `errors.HTTPError`, which belongs to the HTTP library of that version and has
    no public name; `HfHubHTTPError` alone leaves out time-outs.
    """
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


# --- neuronpedia ------------------------------------------------------------------------------------


def bind_requests(request: Any, server: str, timeout: float) -> None:
    """Point a client request at a server, with a timeout and without redirects, in place.

    neuronpedia 1.2, `NPRequest.BASE_URL` and `send_request`, which every call goes through. The client
    would wait forever, and a redirect would carry the API key in its header.
    """
    request.BASE_URL = server
    request.send_request = partial(request.send_request, timeout=timeout, allow_redirects=False)


# --- transformers -----------------------------------------------------------------------------------


def loaded_from(config: Any) -> str:
    """Return the folder or id that a transformers config was loaded from; empty if it was not loaded.

    transformers 5.23, `PretrainedConfig._name_or_path`. An adapter uses it to name its base.
    """
    return getattr(config, "_name_or_path", "") or ""


def forget_quantization(model: Any) -> None:
    """Mark a dequantised model as never quantised, in place.

    transformers 5.23, `config.quantization_config`, `hf_quantizer` and `is_quantized`, because of which
    `save_pretrained` refuses a model read from a GGUF file although its weights are plain by then.
    """
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False


def has_fused_attention(model: Any) -> bool:
    """Return whether a model computes the same with torch's `scaled_dot_product_attention`.

    transformers 5.23, `PreTrainedModel._supports_sdpa`; False for models whose attention has sinks or
    soft caps, which torch's function would silently leave out.
    """
    return bool(model._supports_sdpa)


def reorder_cache_layer(cache: Any, layer: int, index: Tensor) -> None:
    """Reorder the rows of one layer of a KV cache; rows may be repeated or left out.

    transformers 5.23, `Cache.layers[i].reorder_cache`. `Cache.reorder_cache` has one order for all
    layers, and where a batch grows between blocks the lower layers hold fewer rows.
    """
    if layer < len(cache.layers):
        cache.layers[layer].reorder_cache(index)


# --- IPython ----------------------------------------------------------------------------------------


def show_as_html(shell: Any, module: str, name: str, show: Callable[[Any], str]) -> None:
    """Make a notebook show objects of a class with a function, whether or not the class is imported yet.

    IPython 9.18, `shell.display_formatter.formatters["text/html"].for_type_by_name`.
    """
    shell.display_formatter.formatters["text/html"].for_type_by_name(module, name, show)


def show_as_before(shell: Any, module: str, name: str) -> None:
    """Undo `show_as_html`; a second time does nothing.

    IPython 9.18, `shell.display_formatter.formatters["text/html"].pop`.
    """
    shell.display_formatter.formatters["text/html"].pop(f"{module}.{name}", None)
