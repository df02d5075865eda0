"""Options for loading models: device, precision, revisions, tokenizer, beginning of texts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import check_fields

_QUANTISED = "use `quantization_config=BitsAndBytesConfig(...)` of transformers"
_ELSEWHERE = {
    "torch_dtype": "use `dtype`",
    "revision": "use `base_revision` and `finetuned_revision`",
    "trust_remote_code": "Python that comes with a model is never run",
    "load_in_8bit": _QUANTISED,
    "load_in_4bit": _QUANTISED,
}
"""Options of other loaders, and what to use instead."""
_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Device and precision of a model's weights."""

    device: torch.device
    dtype: torch.dtype
    quantization_config: Any = field(default=None, compare=False, repr=False)
    """How weights are quantised when loaded; None keeps them as saved."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Placement":
        """Return a model's placement."""
        return cls(device=model.device, dtype=model.dtype)

    def __str__(self) -> str:
        return f"{self.dtype} on {self.device}".removeprefix("torch.")


def is_quantised(config: PretrainedConfig) -> bool:
    """Return whether a model's weights are quantised."""
    return getattr(config, "quantization_config", None) is not None


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options for loading models."""

    device: str | None = None
    """A torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`; by default that of the models in memory,
    or the CPU if there are none."""
    dtype: torch.dtype | str | None = None
    """Dtype of the weights, such as `torch.bfloat16` or `"bfloat16"`; by default that of the models in
    memory, or float32 if there are none. Differences are small: think twice before using anything but
    float32."""
    base_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    finetuned_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    prepend_bos: bool = False
    """Whether texts get a beginning-of-sequence token; must match the fine-tuning."""
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    """The tokenizer for both models: `"base"` or `"finetuned"` for one of the two, an object, a folder or
    a hub id; by default the fine-tuned model's, or the base's if it has more tokens."""
    adapted_model: Any = None
    """The model that two adapters were made for, if `base` is an adapter too, given like `base` of
    `load_pair`; by default the model that both adapters name."""
    device_map: str | Mapping | None = None
    """The same as in transformers, in place of `device`; the whole pair is on one device."""
    quantization_config: QuantizationConfigMixin | None = None
    """Quantisation of models loaded from files, such as `BitsAndBytesConfig(load_in_4bit=True)`; both
    models are then quantised alike."""
    merged: bool = False
    """Whether to merge a LoRA adapter into copies of the weights that it changes, for speed: the
    fine-tuned model then runs without the adapter's layers, and takes memory for those weights; all
    others are shared with the base. The result is the same up to rounding (logits of SmolLM2-135M in
    float32 differ by at most 2e-5 of their standard deviation), and dictionaries of the unmerged pair
    fit it."""

    def __post_init__(self) -> None:
        """Refuse a device that is not available."""
        check_fields(self)
        if self.device is not None and self.device_map is not None:
            raise InvalidValueError("give either `device` or `device_map`, not both")
        named = self.named_device
        try:
            torch.empty(0, device=named)
        except (RuntimeError, AssertionError) as error:
            raise InvalidValueError(
                f"`device` {named!r} cannot be used here ({error}); try 'cpu'"
            ) from error
        if not self.torch_dtype.is_floating_point:
            raise InvalidValueError(f"`dtype` must be a floating point type, got {self.dtype}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype; float32 for None."""
        named = self.dtype or torch.float32
        named = getattr(torch, named, None) if isinstance(named, str) else named
        if not isinstance(named, torch.dtype):
            raise InvalidValueError(
                f"`dtype` must be a torch type or its name, such as 'bfloat16', got {self.dtype!r}"
            )
        return named

    @property
    def named_device(self) -> str | None:
        """The one device that `device` or `device_map` names; None if neither is given.

        Raises:
            ValueError: `device_map` spreads a model over several devices.
        """
        if isinstance(self.device_map, str) and self.device_map in _SPREADING:
            n = torch.accelerator.device_count()
            if n > 1:
                raise InvalidValueError(
                    f"`device_map` {self.device_map!r} would spread the models over {n} devices, and a "
                    "pair is on one; name it, as in `device='cuda:0'`"
                )
            return str(torch.accelerator.current_accelerator()) if n else "cpu"
        if isinstance(self.device_map, Mapping):
            places = {
                f"cuda:{at}" if isinstance(at, int) else str(at) for at in self.device_map.values()
            }
            if len(places) != 1:
                raise InvalidValueError(
                    f"`device_map` must name one device, as in {{'': 'cuda:0'}}, got {sorted(places)}"
                )
            return places.pop()
        return self.device or self.device_map  # type: ignore[return-value]

    def placement(self, in_memory: Iterable[Placement | None]) -> Placement:
        """Return the placement of both models: as requested, or that of the models in memory.

        Raises:
            ValueError: the models in memory differ in placement, and none was requested.
        """
        there = [place for place in in_memory if place is not None]
        for name, asked in (("device", self.named_device), ("dtype", self.dtype)):
            found = sorted({str(getattr(place, name)) for place in there})
            if asked is None and len(found) > 1:
                raise InvalidValueError(
                    f"the models in memory have {name} {' and '.join(found)}: say which is meant with "
                    f"`{name}=`"
                )
        device = self.named_device or (there[0].device if there else "cpu")
        return Placement(
            device=torch.empty(0, device=device).device,
            dtype=there[0].dtype if there and self.dtype is None else self.torch_dtype,
            quantization_config=self.quantization_config,
        )


def load_options(options: LoadOptions | None, overrides: dict[str, Any]) -> LoadOptions:
    """Return the options of a `load_pair` call, given as an object or as keywords.

    Raises:
        TypeError: not `LoadOptions`, or an option that does not exist.
        ValueError: both an object and keywords.
    """
    if options is not None and not isinstance(options, LoadOptions):
        raise InvalidTypeError(f"`options` must be LoadOptions, got a {type(options).__name__}")
    if options is not None and overrides:
        raise InvalidValueError("give either `options` or its fields, not both")
    known = [field.name for field in fields(LoadOptions)]
    for name in overrides:
        if name not in known:
            hint = _ELSEWHERE.get(name, f"there are {', '.join(f'`{k}`' for k in known)}")
            raise InvalidTypeError(f"`load_pair` has no option `{name}`: {hint}")
    return options or LoadOptions(**overrides)
