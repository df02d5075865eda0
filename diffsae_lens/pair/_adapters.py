"""LoRA adapters: attached from a file, switched on for the fine-tuned model and off for the base."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PretrainedConfig, PreTrainedModel

from diffsae_lens import _hosts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._model_files import adapter_shapes

logger = logging.getLogger(__name__)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress the warning that transformers raises for PEFT's own code when it wraps a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


KEEPING = ("gaussian", "eva", "orthogonal", "mica")
"""Named PEFT initialisations that leave the base's weights alone; all others rewrite them."""


def changes_base(adapter: PeftModel | PeftConfig) -> str | None:
    """Return how an adapter changes the base beyond its own layers, or None if it does not.

    Such a change remains when the adapter is switched off, so the base must be a separate copy.
    """
    configs = adapter.peft_config.values() if isinstance(adapter, PeftModel) else [adapter]
    for config in configs:
        initialised = getattr(config, "init_lora_weights", True)
        if isinstance(initialised, str) and initialised.lower() not in KEEPING:
            return f"was initialised with {initialised!r}, which rewrites the base's weights"
        bias = getattr(config, "bias", "none")
        if bias != "none":
            return f"trained biases of the base (bias={bias!r})"
    return None


class AdapterSwitch:
    """A switch for what `PeftModel.disable_adapter` switches: LoRA layers and fully trained modules.

    That context walks all modules four times, a third of a generation step; this one walks them once.

    Args:
        model: the PEFT model; None for two separate models, where there is nothing to switch.
        base_adapter: the adapter that makes the base; None if the base has no adapter.
    """

    def __init__(self, model: PeftModel | None, base_adapter: str | None = None) -> None:
        self.model = model
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        modules = () if model is None else model.modules()
        self._layers = [module for module in modules if isinstance(module, kinds)]
        self.names: tuple[tuple[str, ...], tuple[str, ...]] = (
            () if base_adapter is None else (base_adapter,),
            () if model is None else tuple(model.active_adapters),
        )
        """The adapters of the base and of the fine-tuned model."""
        for name in self.names[0]:
            if model is None or name not in model.peft_config or name in self.names[1]:
                there = [] if model is None else [*model.peft_config]
                raise InvalidValueError(
                    f"`base_adapter` must be one of the adapters {there} of `adapter` that is not active, "
                    f"got {name!r} while {[*self.names[1]]} is; choose with `adapter.set_adapter`"
                )

    @contextmanager
    def switched(self, *, on: bool) -> Iterator[None]:
        """Activate the fine-tuned model's adapters (or the base's) in the context, then restore."""
        active = self.names[on]
        before = [(layer, _hosts.switch_adapter(layer, active)) for layer in self._layers]
        try:
            yield
        finally:
            for layer, names in before:
                _hosts.switch_adapter(layer, names)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Yield a list that is filled, when the context exits, with the LoRA layers that never ran.

        Layers of experts are left out, since a few tokens reach only some of them.
        """
        silent: list[str] = []
        if self.model is None:
            yield silent
            return
        names = {layer: name for name, layer in self.model.named_modules() if layer in self._layers}
        ran: set[torch.nn.Module] = set()
        with ExitStack() as stack:
            for layer in names:
                handle = layer.register_forward_hook(lambda module, *_: ran.add(module))
                stack.callback(handle.remove)
            yield silent
        silent += [n for layer, n in names.items() if layer not in ran and "expert" not in n]


def attach_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, *, name: str = "default"
) -> PeftModel:
    """Attach an adapter to a model, with every tensor of its file in place, and activate it alone.

    Args:
        model: the model, possibly with another adapter attached.
        folder: the adapter's folder.
        name: the adapter's name on the model.

    Raises:
        ValueError: the file has tensor names or shapes that the adapter lacks, or the reverse.
    """
    own = set(model.state_dict())
    try:
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
            if isinstance(model, PeftModel):
                peft_model = model
                peft_model.load_adapter(str(folder), adapter_name=name)
            else:
                peft_model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            peft_model.set_adapter(name)
    except (RuntimeError, ValueError, KeyError) as error:
        said = str(error).strip().replace("\n", " ")[:200]
        raise InvalidValueError(f"the adapter {folder} does not fit `base`: {said}") from error
    tensors = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    wanted = set(tensors)
    there = set(adapter_shapes(folder))
    # Embeddings with an adapter on them are saved whole in the same file.
    plain = {n: n.removeprefix("base_model.model.").replace(".base_layer.", ".") for n in there}
    unknown = {name for name in there - wanted if plain[name] not in own}
    for names, what in ((unknown, "has no place for"), (wanted - there, "does not find")):
        if names:
            raise InvalidValueError(
                f"the adapter {folder} does not fit `base`, which {what} {len(names)} of its tensors, "
                f"such as {min(names)!r}; it was made for another model or by another tool"
            )
    peft_model.eval().requires_grad_(False)
    return peft_model


def warn_of_other_base(adapter: PeftConfig, base: str, config: PretrainedConfig) -> None:
    """Warn if an adapter names another base; folders may have been moved, so this is not an error."""
    named = adapter.base_model_name_or_path
    known = {Path(name).name.lower() for name in (base, _hosts.loaded_from(config)) if name}
    if named and Path(named).name.lower() not in known:
        logger.warning(
            "the adapter was made for %s, and `base` is %s: are they the same?", named, base
        )
