"""Identity of a model by its weights: a folder may be renamed, and another model may take its name.

A fingerprint is a hash over all persistent tensors. Their names are left out, since a bridge renames
them. Each tensor contributes its shape and two sums over the bits of its values, which are the same on
every device and with any number of threads: one over the raw bits, one over the values rounded to
bfloat16, so that a model loaded in another precision is still recognised.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

import torch
from jaxtyping import Num
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from diffsae_lens._checks import check_items

MAX_ELEMENTS = 2**31
"""Largest model that is read whole; a larger one is read in equal strides, so that it takes seconds."""

_COARSE_STRIDE = 8  # only compared across precisions
_PLACES = 2048  # positions with different factors, so that swapping two values changes the sum


def model_fingerprint(tensors: Iterable[Num[Tensor, "..."]]) -> str:
    """Return a fingerprint of a model's persistent tensors, in any order.

    Args:
        tensors: the tensors, such as `model.state_dict().values()`; shared ones may be repeated.

    Returns:
        `<coarse>-<exact>-<dtype>`: the hash of the values as bfloat16, the hash of their bits, and the
        model's precision. `same_weights` compares two.

    Examples:
        >>> model_fingerprint([torch.ones(2, 2)]) == model_fingerprint([torch.ones(4)])
        False
    """
    tensors = check_items("tensors", tensors, torch.Tensor, allow_empty=True)
    unique = {(t.data_ptr(), t.shape): t.detach() for t in tensors}
    n_elements = sum(tensor.numel() for tensor in unique.values())
    step = -(-n_elements // MAX_ELEMENTS) or 1
    digests = sorted(
        (
            list(tensor.shape),
            _sum_of_bits(tensor.reshape(-1)[:: step * _COARSE_STRIDE].to(torch.bfloat16)),
            _sum_of_bits(tensor.reshape(-1)[::step]),
        )
        for tensor in unique.values()
    )
    floating = [t.dtype for t in unique.values() if t.is_floating_point()]
    dtype = str(max(set(floating), key=floating.count)) if floating else "none"
    coarse = _hash([(shape, rounded) for shape, rounded, _ in digests])
    exact = _hash([(shape, bits) for shape, _, bits in digests])
    return f"{coarse}-{exact}-{dtype.removeprefix('torch.')}"


def pair_fingerprints(
    base: torch.nn.Module,
    finetuned: torch.nn.Module,
    adapter: PeftModel | None,
    names: tuple[Sequence[str], Sequence[str]],
) -> tuple[str, str]:
    """Return the fingerprints of a pair's base and fine-tuned model.

    With an adapter, the two are one model with the adapters of the first and of the second `names`,
    where the first may be empty. The fingerprint of a model with adapters covers its own tensors together
    with theirs, every bit of which is hashed.
    """
    if adapter is None:
        of_base = model_fingerprint(base.state_dict().values())
        return of_base, model_fingerprint(finetuned.state_dict().values())
    added = {
        name: get_peft_model_state_dict(adapter, adapter_name=name, save_embedding_layers=False)
        for name in adapter.peft_config
    }
    places = {tensor.data_ptr() for tensors in added.values() for tensor in tensors.values()}
    plain = model_fingerprint(
        tensor for tensor in base.state_dict().values() if tensor.data_ptr() not in places
    )
    of_base, of_finetuned = (_with_adapters(plain, adapter, some, added) for some in names)
    return of_base, of_finetuned


def _with_adapters(
    plain: str,
    adapter: PeftModel,
    names: Sequence[str],
    added: Mapping[str, Mapping[str, Tensor]],
) -> str:
    """Return the fingerprint of a model with the adapters of these names, given its own."""
    if not names:
        return plain
    scaling = sorted({
        value
        for module in adapter.modules() if isinstance(module, LoraLayer)
        for name, value in module.scaling.items() if name in names
    })  # fmt: skip
    # Adapters that are active together share tensor names, so each is added in turn.
    tensors = [
        tensor for some in names for tensor in sorted(added[some].items(), key=itemgetter(0))
    ]
    digest = hashlib.sha256(repr((plain.split("-")[:2], scaling)).encode())
    for name, tensor in tensors:
        values = tensor.detach().float().cpu().contiguous()
        digest.update(name.encode() + values.numpy().tobytes())
    exact, dtype = digest.hexdigest()[:16], plain.rsplit("-", 1)[1]
    coarse = model_fingerprint(t.float() for _, t in tensors).split("-")[0]
    return f"{_hash((plain.split('-')[0], coarse))}-{exact}-{dtype}"


def same_weights(ours: str, theirs: str) -> bool:
    """Return whether two fingerprints are of one model; across precisions, compare the rounded values."""
    (coarse, exact, dtype), (other_coarse, other_exact, other_dtype) = (
        fingerprint.split("-") for fingerprint in (ours, theirs)
    )
    return exact == other_exact if dtype == other_dtype else coarse == other_coarse


def _sum_of_bits(values: Num[Tensor, "n"]) -> int:
    """Return a wrapping sum that depends on every bit and, up to a period, on its position."""
    raw = (
        values if values.stride(0) == 1 else values.clone(memory_format=torch.contiguous_format)
    ).view(torch.uint8)
    period = 8 * _PLACES
    raw = torch.nn.functional.pad(raw, (0, -len(raw) % period)) if len(raw) % period else raw
    sums = raw.view(torch.int64).view(-1, _PLACES).sum(0)
    places = torch.arange(1, 2 * _PLACES, 2, device=sums.device)  # odd, so that no bit is lost
    return int((sums * places).sum())


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
