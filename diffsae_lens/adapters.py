"""A LoRA pair's adapters, on for the fine-tuned model and off for the base."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Wrap a model with PEFT without the warning that transformers has for PEFT's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


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
            layer._disable_adapters = not on
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = on
