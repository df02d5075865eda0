"""The suite on TransformerLens 4: the smallest stand-in for what SAELens 6 imports of TransformerLens 3.

    pip install --no-deps "transformer-lens>=4,<5"
    python -m pytest -p tests.tl4

SAELens still pins TransformerLens below 4 and imports four names that 4.0 removed, for models of a kind
that this package never makes. Nothing of this package needs them; this plugin gives SAELens empty ones.
"""

import sys
from types import ModuleType

import transformer_lens
import transformer_lens.utilities
from transformer_lens import HookedRootModule


class HookedTransformer(HookedRootModule):
    """Stands for the removed class: nothing is an instance of it."""


class CanBeUsedAsMLP(HookedRootModule):
    """Likewise."""


def _module(name: str, **names: object) -> None:
    module = ModuleType(f"transformer_lens.{name}")
    vars(module).update(names)
    sys.modules[module.__name__] = module


_module(
    "HookedTransformer", HookedTransformer=HookedTransformer, HookedRootModule=HookedRootModule,
    Loss=object, Output=tuple,
)  # fmt: skip
_module("components")
_module("components.mlps")
_module("components.mlps.can_be_used_as_mlp", CanBeUsedAsMLP=CanBeUsedAsMLP)
sys.modules["transformer_lens.utils"] = transformer_lens.utilities
transformer_lens.HookedTransformer = HookedTransformer  # type: ignore[attr-defined]
