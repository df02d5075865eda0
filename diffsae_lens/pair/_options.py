"""How models are loaded: device, precision, revisions, beginning of texts."""

from dataclasses import dataclass, fields
from typing import Any

import torch

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import check_fields

_ELSEWHERE = {
    "torch_dtype": "use `dtype`",
    "device_map": "a model is loaded on one device; use `device`",
    "revision": "use `base_revision` and `finetuned_revision`",
    "trust_remote_code": "Python that comes with a model is never run",
    "quantization_config": "quantised models are not supported",
    "load_in_8bit": "quantised models are not supported",
    "load_in_4bit": "quantised models are not supported",
}
"""Options of other loaders, and what to do about them here."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded."""

    device: str = "cpu"
    """A torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
    dtype: torch.dtype | str = torch.float32
    """Of the weights, such as `torch.bfloat16` or `"bfloat16"`. Differences are small: think twice before
    anything but float32."""
    base_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    finetuned_revision: str | None = None
    """Branch, tag or commit of a hub id."""
    prepend_bos: bool = False
    """Whether texts get a beginning-of-sequence token; must be as in the fine-tuning."""

    def __post_init__(self) -> None:
        """Refuse a device that is not there."""
        check_fields(self)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InvalidValueError(
                f"`device` {self.device!r} cannot be used here ({error}); try 'cpu'"
            ) from error
        if not self.torch_dtype.is_floating_point:
            raise InvalidValueError(f"`dtype` must be a floating point type, got {self.dtype}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch has it."""
        named = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(named, torch.dtype):
            raise InvalidValueError(
                f"`dtype` must be a torch type or its name, such as 'bfloat16', got {self.dtype!r}"
            )
        return named


def load_options(options: LoadOptions | None, overrides: dict[str, Any]) -> LoadOptions:
    """Return the options that a call of `load_pair` was given, in one of two ways.

    Raises:
        TypeError: something else, or an option that does not exist.
        ValueError: both ways at once.
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
