"""Models in memory: copies that share weights, and the plain model inside a bridge.

A pair changes the modules of its models (a bridge wraps them, adapters are attached to them) and their
mode. So it never uses a user's object itself: it copies the modules around the same weights.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from diffsae_lens import _hosts
from diffsae_lens._errors import InvalidValueError

M = TypeVar("M", bound=Module)


def copied(model: M, *, share: bool) -> M:
    """Return a copy of a model in evaluation mode, without gradients and without its hooks.

    Args:
        model: any module; it is left unchanged.
        share: whether the copy shares the model's weights, so that it takes no memory. Writing to the
            weights of one then writes to those of both.
    """
    memo = {id(hooks): type(hooks)() for hooks in _hosts.hooks_of(model)}
    if share:
        memo |= {id(tensor): _shared(tensor) for tensor in _tensors(model)}
    copy_of = copy.deepcopy(model, memo)
    return copy_of.eval().requires_grad_(False)


def _tensors(model: Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _shared(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Parameter):
        # Parameters of other classes (packed by a quantiser) hold more than their values.
        plain = type(tensor) is Parameter
        return Parameter(tensor.detach(), requires_grad=False) if plain else tensor
    return tensor.detach()


def unbridged(bridge: TransformerBridge) -> PreTrainedModel:
    """Return the plain model that a bridge was made from, on the same weights; the bridge is unchanged.

    Raises:
        ValueError: the bridge has processed weights instead of the model's own, or cannot be unwrapped.
    """
    if bridge.compatibility_mode:
        raise InvalidValueError(
            "a bridge in compatibility mode has folded and centred weights, which are not the model's; "
            "boot it anew, or give the name of the model"
        )
    wrapped = bridge.original_model
    if not isinstance(wrapped, PreTrainedModel):
        raise InvalidValueError(
            f"the bridge is around a {type(wrapped).__name__}, which is not a model of transformers; "
            "give two bridges of such models to `HookedModelPair`"
        )
    with torch.device("meta"):
        model = type(wrapped)(copy.deepcopy(wrapped.config))
    there = _hosts.tensors_of_bridge(wrapped)
    known: dict[int, Tensor] = {}  # tied weights stay tied
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        found = there.get(name)
        if found is None or found.shape != tensor.shape:
            raise InvalidValueError(
                f"the bridge cannot be taken apart: it has no plain {name!r} (adapters inside it, or an "
                "architecture whose parts it renames); give the model or the PeftModel it was made of"
            )
        owner, _, leaf = name.rpartition(".")
        shared = known.setdefault(id(found), _shared(found))
        setattr(model.get_submodule(owner), leaf, shared)
    return model.eval().requires_grad_(False)
