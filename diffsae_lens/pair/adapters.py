"""A LoRA pair's adapters, on for the fine-tuned model and off for the base."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from diffsae_lens import _hosts


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Wrap a model with PEFT without the warning that transformers has for PEFT's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


KEEPING = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations by name that leave the base's weights alone; all others of PEFT rewrite them."""


def changes_base(adapter: PeftModel | PeftConfig) -> str | None:
    """Return how an adapter changes the base beyond its own layers, None if it does not.

    Such a change stays when the adapter is switched off, so the base must be another copy.
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
    """Switches what `PeftModel.disable_adapter` does: LoRA layers, and modules trained whole.

    That context walks all modules four times, a third of a generation step; this one walks them once.

    Args:
        model: the PEFT model; None for two models of their own, for which nothing is switched.
    """

    def __init__(self, model: PeftModel | None) -> None:
        self.model = model
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        modules = () if model is None else model.modules()
        self._layers = [module for module in modules if isinstance(module, kinds)]

    @contextmanager
    def switched(self, *, on: bool) -> Iterator[None]:
        """Have the adapters on, or off, inside; after it they are what they were."""
        layers = [layer for layer in self._layers if layer.disable_adapters == on]
        for layer in layers:
            _hosts.switch_adapter(layer, on=on)
        try:
            yield
        finally:
            for layer in layers:
                _hosts.switch_adapter(layer, on=not on)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Yield a list that holds, when the context is left, the LoRA layers that never ran inside.

        Those of experts are left out, of which a few tokens reach only some.
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
