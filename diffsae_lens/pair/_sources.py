"""Sources of a pair's whole models: a folder or hub id, a model in memory, a bridge, a PEFT model.

Each is a `Source`, which provides the plain model's weights, configuration, tokenizer and name. The code
that loads a pair sees nothing else.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from diffsae_lens import _hosts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._adapters import changes_base
from diffsae_lens.pair._memory import copied
from diffsae_lens.pair._model_files import (
    ATTENTION,
    fetch,
    has_tokenizer,
    load_tokenizer,
    load_weights,
)
from diffsae_lens.pair._options import Placement, is_quantised


class Source(ABC):
    """A source of one whole model."""

    name: str
    revision: str | None = None

    @property
    @abstractmethod
    def config(self) -> PretrainedConfig:
        """The model's config; for a multimodal model, the whole config."""

    @property
    def placement(self) -> Placement | None:
        """Device and precision of its weights; None if they are not loaded yet."""
        return None

    @property
    def lent(self) -> tuple[torch.Tensor, ...]:
        """The user's tensors that share memory with the weights."""
        return ()

    @abstractmethod
    def weights(self, placement: Placement, *, share: bool = True) -> PreTrainedModel:
        """Return a plain model in evaluation mode, whose modules may be changed freely.

        Args:
            placement: its device and precision.
            share: whether its weights may be shared with a user's model, so that they must not be
                written to.
        """

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the model's own tokenizer; None if it has none."""


@dataclass(frozen=True, kw_only=True)
class InFolder(Source):
    """A model in a folder or on the hub."""

    name: str
    path: str
    revision: str | None = None

    @property
    @override
    def config(self) -> PretrainedConfig:
        return fetch(AutoConfig, self.path, self.revision)

    @override
    def weights(self, placement: Placement, *, share: bool = True) -> PreTrainedModel:
        return load_weights(self.path, self.revision, placement)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return load_tokenizer(self.path, self.revision)


@dataclass(frozen=True, kw_only=True, eq=False)
class InMemory(Source):
    """A user's model, which is left unchanged."""

    name: str
    model: PreTrainedModel
    side: str

    def __post_init__(self) -> None:
        """Refuse a model that is spread over devices or has adapters inside it."""
        check_one_place(self.side, self.model)
        if any(isinstance(part, BaseTunerLayer) for part in self.model.modules()):
            raise InvalidValueError(
                f"`{self.side}` is a model with adapters inside it (`get_peft_model` and `load_adapter` "
                "change the model they are given): give the PeftModel itself as `finetuned`, and as "
                "`base` its `get_base_model()`, or the name of the base"
            )

    @property
    @override
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    @override
    def placement(self) -> Placement | None:
        return Placement.of(self.model)

    @property
    @override
    def lent(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.parameters())

    @override
    def weights(self, placement: Placement, *, share: bool = True) -> PreTrainedModel:
        return placed(copied(self.model, share=share), placement)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return tokenizer_of(self.config)


@dataclass(frozen=True, kw_only=True, eq=False)
class InBridge(InMemory):
    """The plain model extracted from a user's bridge."""

    bridge: TransformerBridge

    @property
    @override
    def lent(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.bridge.original_model.parameters())

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.bridge.tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class UnderAdapter(Source):
    """The base underneath a user's PEFT model."""

    name: str
    peft_model: PeftModel

    @property
    @override
    def config(self) -> PretrainedConfig:
        return under(self.peft_model).config

    @property
    @override
    def placement(self) -> Placement | None:
        return Placement.of(under(self.peft_model))

    @override
    def weights(self, placement: Placement, *, share: bool = True) -> PreTrainedModel:
        if reason := changes_base(self.peft_model):
            raise InvalidValueError(
                f"`finetuned` {reason}, so its `get_base_model()` is not the base that it was made from: "
                "give `base` by its name or folder"
            )
        plain = copied(self.peft_model, share=share).unload()  # type: ignore[operator]
        return placed(plain, placement)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return tokenizer_of(self.config)


def placed(model: PreTrainedModel, placement: Placement) -> PreTrainedModel:
    """Move a copy to a placement, with the attention and the architecture name that a bridge needs."""
    if model.config.architectures is None:  # a model that was never saved; the bridge reads it
        model.config.architectures = [type(model).__name__]
    if Placement.of(model) != placement:
        if is_quantised(model.config):
            raise InvalidValueError(
                f"a quantised model in memory stays on its device and in its precision, "
                f"{Placement.of(model)}, not {placement}; leave `device` and `dtype` out"
            )
        model = model.to(device=placement.device, dtype=placement.dtype)  # type: ignore[call-overload]
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    return model


def check_one_place(side: str, model: Any) -> None:
    """Refuse a model that is spread over several devices.

    Raises:
        ValueError: names the devices.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise InvalidValueError(
            f"`{side}` is on {', '.join(devices)}; a pair is on one device: load the model again with "
            "`device_map={'': device}`"
        )


def tokenizer_of(config: PretrainedConfig) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer saved where a model in memory was loaded from; None if there is none."""
    path = _hosts.loaded_from(config)
    known = path and (not Path(path).is_dir() or has_tokenizer(path))
    return load_tokenizer(path, None) if known else None


def under(peft_model: PeftModel) -> PreTrainedModel:
    """Return the model underneath a PEFT model."""
    model = peft_model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise InvalidValueError(
            f"`finetuned` is a PeftModel on a {type(model).__name__}, which is not a model of transformers; "
            "make it on one"
        )
    return model
