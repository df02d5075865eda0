"""What torch asks of a module, answered by two models: parameters, state, device, evaluation mode."""

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
    """A user's tensor, which is not kept alive, and what it was."""

    def __init__(self, tensor: Tensor) -> None:
        self._reference = weakref.ref(tensor)
        self._version = _hosts.tensor_version(tensor)
        self._values = _sample(tensor)

    @property
    def tensor(self) -> Tensor | None:
        """The tensor; None if the user has let go of it."""
        return self._reference()

    def has_changed(self) -> bool:
        """Whether it was written to, with other values than it had."""
        tensor = self.tensor
        if tensor is None or _hosts.tensor_version(tensor) == self._version:
            return False
        if not torch.equal(_sample(tensor), self._values):
            return True
        self._version = _hosts.tensor_version(
            tensor
        )  # PEFT sets experts' matrices to what they are
        return False


def _sample(tensor: Tensor) -> Tensor:
    return _some(tensor, 4096).clone()


def _some(tensor: Tensor, n: int) -> Tensor:
    """At most that many of its values, seen where they lie if it is contiguous."""
    flat = tensor.detach().reshape(-1)
    return flat[:: flat.numel() // n + 1]


class PairedModule(HookedRootModule):
    """A root module whose weights are those of `_models`, which lie outside its module tree."""

    _models: tuple[TransformerBridge, TransformerBridge]

    _watched: tuple[_Watched, ...] = ()
    _seen: tuple[list[Tensor], Tensor] | None = None
    """A few values of each watched tensor where they lie, and what they were: one comparison for all, since
    writing to `.data`, as PEFT does where it merges, leaves a tensor's version as it is."""

    def watch(self, lent: Iterable[Tensor]) -> None:
        """Refuse to run once tensors whose memory the models' weights share have been written to.

        Args:
            lent: a user's own; those that share no memory are left out.
        """
        ours = {parameter.data_ptr() for parameter in self.parameters()}
        shared = [tensor for tensor in lent if tensor.data_ptr() in ours]
        self._watched = tuple(map(_Watched, shared))
        few = [_some(tensor, 16) for tensor in shared]
        self._seen = (few, torch.cat(few)) if few else None

    def check_unchanged(self) -> None:
        """Refuse to run on weights that were written to after they were compared.

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
        """Where the models are."""
        return next(self._models[1].original_model.parameters()).device

    def _named_models(self) -> dict[str, torch.nn.Module]:
        """The models by side; one for a pair whose adapters share the base's weights."""
        base, finetuned = (bridge.original_model for bridge in self._models)
        shared = base is finetuned
        return {"finetuned": finetuned} if shared else {"base": base, "finetuned": finetuned}

    @override
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield both models' parameters, `base.` and `finetuned.` before their names in transformers."""
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
        """Refuse: a pair is of two models as they were when it was made.

        Raises:
            TypeError: always.
        """
        raise InvalidTypeError(
            "a pair's weights cannot be replaced: save the models with `save_pretrained` and make a "
            "new pair with `load_pair`"
        )

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PairedModule":
        # What `to`, `cuda`, `cpu`, `half` and the like come down to.
        sample = next(self.parameters())
        if fn(sample.detach()[:0]).dtype != sample.dtype:
            raise InvalidTypeError(
                f"a pair's precision cannot be changed from {sample.dtype}: load it with "
                "`load_pair(..., dtype=...)`, which compares it with plain models of that precision"
            )
        for model in self._named_models().values():
            _hosts.apply_to_tensors(model, fn, recurse)
        # Weights that were moved are no longer anybody else's.
        self.watch([w.tensor for w in self._watched if w.tensor is not None])
        for bridge in self._models:
            bridge.cfg.device = str(next(bridge.original_model.parameters()).device)
        return self

    @override
    def train(self, mode: bool = True) -> "PairedModule":
        """Put both models into evaluation mode (`eval()`); training mode is refused.

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
