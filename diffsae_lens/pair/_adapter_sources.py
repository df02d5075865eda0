"""Sources of a pair's adapter: a folder or hub id, or a PEFT model in memory."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._adapters import attach_adapter, changes_base, warn_of_other_base
from diffsae_lens.pair._memory import copied
from diffsae_lens.pair._model_files import adapter_shapes, check_adapter, load_tokenizer
from diffsae_lens.pair._options import Placement
from diffsae_lens.pair._sources import Source, check_one_place, placed, under
from diffsae_lens.pair._vocabulary import n_rows


class Adapter(ABC):
    """A LoRA adapter, which turns the base into the fine-tuned model."""

    name: str
    revision: str | None = None
    placement: Placement | None = None

    @property
    def lent(self) -> tuple[torch.Tensor, ...]:
        """The user's tensors that share memory with a PEFT model made of this adapter."""
        return ()

    @property
    @abstractmethod
    def writes_to_base(self) -> bool:
        """Whether attaching the adapter writes to the model's own weights."""

    @abstractmethod
    def n_rows(self, base: int) -> int:
        """Return how many embedding rows the fine-tuned model has, given the base's number."""

    @abstractmethod
    def check(self, base: Source) -> None:
        """Refuse an adapter that does not fit the base.

        Raises:
            ValueError: not a LoRA adapter, damaged, or made for another model size.
        """

    @abstractmethod
    def on(self, base: PreTrainedModel, *, share: bool = True) -> PeftModel:
        """Return a PEFT model in evaluation mode, with the adapter active.

        Args:
            base: the plain base; it may be consumed.
            share: whether the weights may be shared with a user's model.
        """

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer saved with the adapter; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class AdapterInFolder(Adapter):
    """An adapter in a folder or on the hub."""

    name: str
    path: str
    folder: Path
    revision: str | None = None

    @property
    def _shapes(self) -> dict[str, list[int]]:
        return adapter_shapes(self.folder)

    @property
    def made_for(self) -> str | None:
        """The model that the adapter's config says it was made for."""
        return PeftConfig.from_pretrained(str(self.folder)).base_model_name_or_path

    @property
    @override
    def writes_to_base(self) -> bool:
        config = PeftConfig.from_pretrained(str(self.folder))
        return bool(changes_base(config)) or not all("lora_" in name for name in self._shapes)

    @override
    def n_rows(self, base: int) -> int:
        embeddings = ("embed", "wte", "lm_head")
        whole = [
            shape[0]
            for name, shape in self._shapes.items()
            if "lora_" not in name and len(shape) == 2 and any(e in name for e in embeddings)
        ]
        return max([base, *whole])

    @override
    def check(self, base: Source) -> None:
        config = PeftConfig.from_pretrained(str(self.folder))
        check_adapter(self.folder, config, base.config.get_text_config())
        warn_of_other_base(config, base.name, base.config)

    @override
    def on(self, base: PreTrainedModel, *, share: bool = True) -> PeftModel:
        return attach_adapter(base, self.folder)

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return load_tokenizer(self.path, self.revision)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterInMemory(Adapter):
    """A user's PEFT model, which is left unchanged."""

    name: str
    peft_model: PeftModel
    placement: Placement | None = None

    @property
    @override
    def lent(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.peft_model.parameters())

    @property
    @override
    def writes_to_base(self) -> bool:
        return False  # it brings its own base

    @override
    def n_rows(self, base: int) -> int:
        return n_rows(under(self.peft_model).config)

    @override
    def check(self, base: Source) -> None:
        check_one_place("finetuned", under(self.peft_model))
        for name in self.peft_model.active_adapters:
            kind = self.peft_model.peft_config[name].peft_type
            if str(kind) not in ("LORA", "PeftType.LORA"):
                raise InvalidValueError(
                    f"`finetuned` has the {kind} adapter {name!r}; only LORA is supported"
                )
        layers = [m for m in self.peft_model.modules() if isinstance(m, BaseTunerLayer)]
        if any(layer.merged for layer in layers):
            raise InvalidValueError(
                "`finetuned` is a PeftModel whose adapter is merged into the base; call its "
                "`unmerge_adapter()` first"
            )

    @override
    def on(self, base: PreTrainedModel, *, share: bool = True) -> PeftModel:
        peft_model = copied(self.peft_model, share=share)
        peft_model.base_model.enable_adapter_layers()  # type: ignore[operator]
        placed(under(peft_model), Placement.of(base))
        peft_model.requires_grad_(False)
        return peft_model

    @override
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None
