"""Sparse forward and backward passes of the TopK family, which touch only active features.

With k of d_sae features active, a dense step spends four fifths of its time multiplying zeros. Here
the encoder's product is computed once, in blocks of rows that are dropped as soon as their active
entries are known; everything after it, forward and backward, touches only the active entries. The
results are those of the dense computation: the same features and the same gradients.

On a GPU the encoder's product runs in TF32, everything else in float32.

On a CPU the memory layout of the weights matters: `W_enc` should be a view of `[d_sae, d_in]` memory
(`feature_major`), so that its gradient has the same layout.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import override

from diffsae_lens._hosts import storage_users

BLOCK_SIZE = 1 << 23  # pre-activations held at a time
DEVICE_BLOCK_SIZE = 1 << 27  # the same on a GPU, which a small product leaves idle
GROUP_SIZE = 32  # entries per group; the groups' maxima bound the k-th largest from below


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The active features of a batch, in the order of its rows."""

    values: Float[Tensor, "active"]
    """Feature activations."""
    features: Int[Tensor, "active"]
    """Which feature each belongs to."""
    offsets: Int[Tensor, "row"]
    """Where each row of the batch begins."""
    d_sae: int
    """Width of the dictionary."""

    @property
    def rows(self) -> Int[Tensor, "active"]:
        """Which row of the batch each entry belongs to."""
        n_rows, n_active = len(self.offsets), len(self.features)
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([n_active])])
        index = torch.arange(n_rows, device=self.offsets.device)
        return index.repeat_interleave(ends - self.offsets, output_size=n_active)

    def to_sparse(self) -> Tensor:
        """Return the codes as a detached sparse COO tensor `[row, d_sae]`."""
        rows = self.rows
        order = torch.argsort(rows * self.d_sae + self.features)
        return torch.sparse_coo_tensor(
            torch.stack([rows, self.features])[:, order],
            self.values.detach()[order],
            (len(self.offsets), self.d_sae),
            is_coalesced=True,
            check_invariants=False,
        )


class Workspace:
    """Named memory, reused once no outside tensor refers to it.

    On a CPU fresh pages of memory cost more than the sparse arithmetic whose results they hold;
    elsewhere torch caches memory itself. Dictionaries that step in turn may share a workspace.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, tuple[int, ...], torch.dtype], tuple[Tensor, int]] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor of a shape, with `like`'s dtype and device."""
        if not like.is_cpu or torch.is_inference_mode_enabled():
            return like.new_empty(shape)
        key = (name, tuple(shape), like.dtype)
        memory, alone = self._memory.get(key, (None, 0))
        # Any count other than the first means "in use".
        if memory is None or storage_users(memory) != alone:
            memory = like.new_empty(shape)
            self._memory[key] = memory, storage_users(memory)
        return memory.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Workspace":
        """Return an empty workspace: memory is neither shared nor worth copying."""
        return Workspace()


def feature_major(W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, "d_in d_sae"]:
    """Return the encoder with each feature's weights contiguous in memory."""
    return W_enc.T.contiguous().T


@torch.no_grad()
def topk_codes(
    x: Float[Tensor, "row d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    *,
    k: int,
    scale: Float[Tensor, "d_sae"] | None = None,
    workspace: Workspace | None = None,
) -> Codes:
    """Select the k largest pre-activations of each row, negative ones included.

    Args:
        x: encoder input.
        W_enc: encoder.
        b_enc: encoder bias.
        k: entries per row, at most d_sae.
        scale: factors that multiply pre-activations before they are compared, such as decoder norms;
            the values returned are not multiplied.
        workspace: memory that the next call can reuse.

    Returns:
        k entries per row, detached; `encode_selected` attaches their gradient.
    """
    features, values = [], []
    for _, product, scaled in _blocks(x, W_enc, b_enc, scale, workspace):
        chosen = scaled.topk(k, dim=-1, sorted=False).indices
        features.append(chosen)
        values.append(product.gather(-1, chosen) + b_enc[chosen])
    return Codes(
        values=torch.cat(values).flatten(),
        features=torch.cat(features).flatten(),
        offsets=torch.arange(0, len(x) * k, k, device=x.device),
        d_sae=W_enc.shape[1],
    )


@torch.no_grad()
def batch_topk_codes(
    x: Float[Tensor, "row d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    *,
    k: int | float,
    scale: Float[Tensor, "d_sae"] | None = None,
    workspace: Workspace | None = None,
) -> tuple[Codes, Float[Tensor, ""]]:
    """Select the k * n_rows largest positive pre-activations of a whole batch.

    The batch is never sorted. The n-th largest of the maxima of groups of entries is a lower bound on
    the n-th largest entry, so only the few entries above it have to be ranked; the bound rises from
    block to block.

    Args:
        x: encoder input.
        W_enc: encoder.
        b_enc: encoder bias.
        k: mean number of entries per row; int(k * n_rows) are selected, fewer if fewer are positive.
        scale: as in `topk_codes`.
        workspace: as in `topk_codes`.

    Returns:
        The entries, detached, and the smallest scaled value among them (0 if there is none).
    """
    n_selected = int(k * len(x))
    d_sae = W_enc.shape[1]
    tiny = torch.finfo(x.dtype).tiny
    maxima, flat, found, values = x.new_empty(0), [], [], []
    for start, product, scaled in _blocks(x, W_enc, b_enc, scale, workspace):
        maxima = torch.cat([maxima, _group_maxima(scaled).flatten()])
        if len(maxima) > n_selected:
            maxima = maxima.topk(n_selected, sorted=False).values
        bound = maxima.min() if len(maxima) == n_selected > 0 else x.new_zeros(())
        candidates = (scaled >= bound.clamp(min=tiny)).flatten().nonzero().squeeze(1)
        flat.append(candidates + start * d_sae)
        found.append(scaled.flatten()[candidates])
        values.append(product.flatten()[candidates] + b_enc[candidates % d_sae])
    flat, found, values = torch.cat(flat), torch.cat(found), torch.cat(values)
    if len(found) > n_selected:
        kept = found.topk(n_selected, sorted=False).indices.sort().values
        flat, found, values = flat[kept], found[kept], values[kept]
    counts = torch.bincount(flat // d_sae, minlength=len(x))
    codes = Codes(
        values=values, features=flat % d_sae, offsets=counts.cumsum(0) - counts, d_sae=d_sae
    )
    return codes, found.min() if len(found) else x.new_zeros(())


def encode_selected(
    x: Float[Tensor, "row d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    codes: Codes,
    *,
    workspace: Workspace | None = None,
) -> Codes:
    """Return the codes with a gradient through their values, x W_enc + b_enc."""
    values = _Encode.apply(x, W_enc.T, b_enc, codes, workspace or Workspace())
    return replace(codes, values=values)


def decode_selected(
    codes: Codes, W_dec: Float[Tensor, "d_sae d_in"], *, workspace: Workspace | None = None
) -> Float[Tensor, "row d_in"]:
    """Return each row's sum of activation times decoder row, with its gradient."""
    return _Decode.apply(codes.values, W_dec, codes, workspace or Workspace())  # type: ignore[return-value]


def merge_codes(first: Codes, second: Codes) -> Codes:
    """Merge the active features of two parts of a dictionary, `second` after `first`.

    Gradients pass through.
    """
    rows = torch.cat([first.rows, second.rows])
    order = torch.argsort(rows, stable=True)
    counts = torch.bincount(rows, minlength=len(first.offsets))
    return Codes(
        values=torch.cat([first.values, second.values])[order],
        features=torch.cat([first.features, second.features + first.d_sae])[order],
        offsets=counts.cumsum(0) - counts,
        d_sae=first.d_sae + second.d_sae,
    )


class _Encode(torch.autograd.Function):
    """The selected entries of x weight^T + b_enc, `[active]`; their values are known already."""

    @staticmethod
    @override
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, b_enc: Tensor, codes: Codes, workspace: Workspace
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.codes, ctx.workspace = codes, workspace
        return codes.values.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        codes = replace(ctx.codes, values=grad_outputs[0].contiguous())
        grad_x = _weighted_sum(codes, weight) if ctx.needs_input_grad[0] else None
        grad_b_enc = x.new_zeros(codes.d_sae).index_add_(0, codes.features, codes.values)
        return grad_x, _sum_by_feature("W_enc", codes, x, ctx.workspace), grad_b_enc, None, None


class _Decode(torch.autograd.Function):
    """Each row's sum of activation times decoder row, `[row, d_in]`."""

    @staticmethod
    @override
    def forward(
        ctx: Any, values: Tensor, W_dec: Tensor, codes: Codes, workspace: Workspace
    ) -> Tensor:
        ctx.codes, ctx.workspace = replace(codes, values=values.detach()), workspace
        with torch.enable_grad():
            ctx.values = values.detach().requires_grad_()
            ctx.out = _weighted_sum(replace(codes, values=ctx.values), W_dec.detach())
        return ctx.out.detach()

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0].contiguous()
        grad_values = grad_W_dec = None
        if ctx.needs_input_grad[0]:
            (grad_values,) = torch.autograd.grad(ctx.out, ctx.values, grad, retain_graph=True)
        if ctx.needs_input_grad[1]:
            grad_W_dec = _sum_by_feature("W_dec", ctx.codes, grad, ctx.workspace)
        return grad_values, grad_W_dec, None, None


def _weighted_sum(codes: Codes, weight: Tensor) -> Tensor:
    """The sum of value * weight[feature] over the entries of each row, `[row, d_in]`."""
    return embedding_bag(
        codes.features, weight, codes.offsets, mode="sum", per_sample_weights=codes.values
    )


def _sum_by_feature(name: str, codes: Codes, x: Tensor, workspace: Workspace) -> Tensor:
    """The sum of value * x[row] over the entries of each feature, `[d_sae, d_in]`."""
    shape = (codes.d_sae, x.shape[1])
    if x.is_cpu and x.dtype in (torch.float32, torch.float64) and torch.backends.mkl.is_available():
        out = workspace.take(name, shape, x)
        return torch.addmm(out, _feature_by_row(codes), x, beta=0, out=out)
    # The same as the gradient of a weighted sum with respect to its weight.
    with torch.enable_grad():
        weight = x.new_empty(shape).requires_grad_()
        (gradient,) = torch.autograd.grad(_weighted_sum(codes, weight), weight, x)
    return gradient


def _feature_by_row(codes: Codes) -> Tensor:
    """The codes as a sparse CSR matrix, `[d_sae, row]`."""
    order = torch.argsort(codes.features, stable=True)
    ends = torch.bincount(codes.features, minlength=codes.d_sae).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.cat([ends.new_zeros(1), ends]),
            codes.rows[order],
            codes.values[order],
            (codes.d_sae, len(codes.offsets)),
            check_invariants=False,
        )


def _blocks(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, scale: Tensor | None, workspace: Workspace | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield first row, x W_enc and (x W_enc + b_enc) * scale; the last two valid until the next block."""
    workspace = workspace or Workspace()
    d_sae = W_enc.shape[1]
    block_size = BLOCK_SIZE if x.is_cpu else DEVICE_BLOCK_SIZE
    n_rows = min(max(1, block_size // d_sae), len(x))
    products, compared = (workspace.take(name, (n_rows, d_sae), x) for name in ("raw", "scaled"))
    scale = torch.ones_like(b_enc) if scale is None else scale
    for start in range(0, len(x), n_rows):
        block = x[start : start + n_rows]
        with _tensor_cores(x):
            product = torch.mm(block, W_enc, out=products[: len(block)])
        scaled = torch.addcmul(b_enc * scale, product, scale, out=compared[: len(block)])
        yield start, product, scaled


@contextmanager
def _tensor_cores(x: Tensor) -> Iterator[None]:
    """Let a GPU multiply float32 in TF32: inputs with 10 mantissa bits, sums in float32."""
    if not x.is_cuda:
        yield
        return
    matmul = torch.backends.cuda.matmul
    has_precision = hasattr(matmul, "fp32_precision")  # torch >= 2.9 warns about the other
    name, fast = ("fp32_precision", "tf32") if has_precision else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, fast)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def _group_maxima(pre: Tensor) -> Tensor:
    n_groups = pre.shape[1] // GROUP_SIZE
    if n_groups == 0:
        return pre.amax(-1)
    whole = pre[:, : n_groups * GROUP_SIZE].unflatten(1, (GROUP_SIZE, n_groups))
    return whole.amax(1)
