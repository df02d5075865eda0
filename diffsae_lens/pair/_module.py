"""The module interface of torch for two models: parameters, state, device, evaluation mode."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from diffsae_lens import _hosts
from diffsae_lens._errors import FailedRunError, InvalidTypeError


class _Watched:
    """A weak reference to a user's tensor, with its original version and values."""

    def __init__(self, tensor: Tensor) -> None:
        self._reference = weakref.ref(tensor)
        self._version = _hosts.tensor_version(tensor)
        self._values = _sample(tensor)

    @property
    def tensor(self) -> Tensor | None:
        """The tensor, or None if the user has released it."""
        return self._reference()

    def has_changed(self) -> bool:
        """Return whether the tensor was overwritten with different values."""
        tensor = self.tensor
        if tensor is None or _hosts.tensor_version(tensor) == self._version:
            return False
        if not torch.equal(_sample(tensor), self._values):
            return True
        self._version = _hosts.tensor_version(
            tensor
        )  # PEFT rewrites experts' matrices with the same values
        return False


def _sample(tensor: Tensor) -> Tensor:
    return _some(tensor, 4096).clone()


def _some(tensor: Tensor, n: int) -> Tensor:
    """Return at most `n` of a tensor's values, as a view if it is contiguous."""
    flat = tensor.detach().reshape(-1)
    return flat[:: flat.numel() // n + 1]


class PairedModule(HookedRootModule):
    """A root module whose weights are those of `_models`, which are outside its module tree."""

    _models: tuple[TransformerBridge, TransformerBridge]

    _watched: tuple[_Watched, ...] = ()
    _seen: tuple[list[Tensor], Tensor] | None = None
    """Views of a few values of each watched tensor, and their original values, compared in one operation:
    writing to `.data`, as PEFT does when it merges, does not change a tensor's version."""

    def watch(self, lent: Iterable[Tensor]) -> None:
        """Watch tensors that share memory with the models' weights; once changed, the pair refuses to run.

        Args:
            lent: a user's tensors; those that share no memory are left out.
        """
        ours = {parameter.data_ptr() for parameter in self.parameters()}
        shared = [tensor for tensor in lent if tensor.data_ptr() in ours]
        self._watched = tuple(map(_Watched, shared))
        few = [_some(tensor, 16) for tensor in shared]
        self._seen = (few, torch.cat(few)) if few else None

    def check_unchanged(self) -> None:
        """Refuse to run on weights that were written to after they were verified.

        Raises:
            RuntimeError: says what to do.
        """
        rewritten = self._seen is not None and not torch.equal(
            torch.cat(self._seen[0]), self._seen[1]
        )
        if rewritten or any(watched.has_changed() for watched in self._watched):
            raise FailedRunError(
                "a model in memory that the pair was made of was changed since, and the pair has its "
                "weights: make a new pair with `load_pair`, or one of a copy of the model before you "
                "train it on"
            )

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return next(self._models[1].original_model.parameters()).device

    def _named_models(self) -> dict[str, torch.nn.Module]:
        """Return the models by side; only one if the adapters share the base's weights."""
        base, finetuned = (bridge.original_model for bridge in self._models)
        shared = base is finetuned
        return {"finetuned": finetuned} if shared else {"base": base, "finetuned": finetuned}

    @override
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield both models' parameters: names in transformers, prefixed with `base.` or `finetuned.`."""
        for side, model in self._named_models().items():
            yield from model.named_parameters(prefix + side, recurse, remove_duplicate)

    @override
    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield both models' parameters."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    @override
    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield both models' buffers, named as in `named_parameters`."""
        for side, model in self._named_models().items():
            yield from model.named_buffers(prefix + side, recurse, remove_duplicate)

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return both models' tensors, named as in `named_parameters`."""
        found: dict[str, Any] = {}
        for side, model in self._named_models().items():
            found |= {f"{side}.{k}": v for k, v in model.state_dict(*args, **kwargs).items()}
        return found

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> NoReturn:
        """Refuse: a pair's two models stay as they were when it was made.

        Raises:
            TypeError: always.
        """
        raise InvalidTypeError(
            "a pair's weights cannot be replaced: save the models with `save_pretrained` and make a "
            "new pair with `load_pair`"
        )

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PairedModule":
        # `to`, `cuda`, `cpu`, `half` and the like all call this.
        sample = next(self.parameters())
        if fn(sample.detach()[:0]).dtype != sample.dtype:
            raise InvalidTypeError(
                f"a pair's precision cannot be changed from {sample.dtype}: load it with "
                "`load_pair(..., dtype=...)`, which compares it with plain models of that precision"
            )
        for model in self._named_models().values():
            _hosts.apply_to_tensors(model, fn, recurse)
        # Weights that were moved are no longer shared with anybody.
        self.watch([w.tensor for w in self._watched if w.tensor is not None])
        for bridge in self._models:
            bridge.cfg.device = str(next(bridge.original_model.parameters()).device)
        return self

    @override
    def train(self, mode: bool = True) -> "PairedModule":
        """Put both models into evaluation mode (`eval()`); refuse training mode.

        Raises:
            TypeError: `mode` is true. Dropout would make two readings of one text differ.
        """
        if mode:
            raise InvalidTypeError(
                "a pair is always in evaluation mode; train the models themselves and make a new pair"
            )
        for bridge in self._models:
            bridge.train(False)
        self.training = False
        return self
