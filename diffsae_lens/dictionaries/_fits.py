"""Check that a dictionary fits a pair (hook point, width, models, kind), and check feature indices."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, SupportsIndex
from weakref import WeakKeyDictionary

from sae_lens import SAE, Transcoder

from diffsae_lens._checks import check_finite, check_indices
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._hosts import tensor_version
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._fingerprint import same_weights
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._metadata import PairMetadata

FeatureIndices = Iterable[SupportsIndex]
"""Indices of features: integers of any kind, in a list, a range, an array or a tensor."""


def check_fits(pair: HookedModelPair, dictionary: SAE) -> VirtualHook:
    """Check that a dictionary fits a pair, and return the virtual hook point it reads.

    Models are compared by the fingerprints of their weights, so a folder may be moved or renamed. If the
    dictionary's record has no fingerprint, the names of the models' folders must agree instead.

    Raises:
        TypeError: `pair` is not a pair, or `dictionary` is not a dictionary.
        ValueError: the dictionary is a transcoder, its metadata do not name a hook point of this pair, it
            has another width or was trained on other models, or the pair is mirrored; names both sides.

    Warns:
        UserWarning: the models differ in precision or (if compared by name) revision, or only one of the
            pair and the training begins texts with a beginning-of-sequence token.
    """
    _check_kinds(pair, dictionary)
    record = DictionaryRecord.of(dictionary)
    hook_name = record.hook_name
    if hook_name is None:
        raise InvalidValueError(
            "the dictionary's metadata names no hook point; set `dictionary.cfg.metadata.hook_name` "
            f"to one of {sorted(pair.hook_dict)}"
        )
    pair.check_hook_name(hook_name)
    if pair.d_in(hook_name) != dictionary.cfg.d_in:
        raise InvalidValueError(
            f"the dictionary reads {dictionary.cfg.d_in} wide activations, but {hook_name} of this "
            f"pair is {pair.d_in(hook_name)} wide: it was trained on another model"
        )
    if record.pair is not None:
        _check_models(record.pair, pair.metadata)
    if record.prepend_bos is not None and record.prepend_bos != pair.prepend_bos:
        warnings.warn(
            f"the dictionary was trained with `prepend_bos={record.prepend_bos}`, the pair has "
            f"`prepend_bos={pair.prepend_bos}`, so its texts begin otherwise; load the pair with the "
            "dictionary's, or correct `dictionary.cfg.metadata.prepend_bos`",
            stacklevel=3,
        )
    return VirtualHook.parse(hook_name)


def _check_kinds(pair: HookedModelPair, dictionary: SAE) -> None:
    if not isinstance(pair, HookedModelPair):
        raise InvalidTypeError(
            f"`pair` must be a HookedModelPair, got {type(pair).__name__}; make one with `load_pair`"
        )
    if not isinstance(dictionary, SAE):
        raise InvalidTypeError(
            f"`dictionary` must be a SAELens dictionary, got {type(dictionary).__name__}; load it with "
            "`diffsae_lens.load`"
        )
    check_weights_once(dictionary)
    if pair.is_mirrored:
        raise InvalidValueError(
            "a mirrored pair's `.diff` is base - finetuned, which no dictionary was trained on; use the "
            "pair it was made of"
        )
    record = DictionaryRecord.of(dictionary)
    elsewhere = record.hook_name_out not in (None, record.hook_name)
    if isinstance(dictionary, Transcoder) or elsewhere:
        raise InvalidValueError(
            f"`dictionary` must write where it reads, got the transcoder {type(dictionary).__name__}, "
            "whose output belongs to another hook point; train a dictionary on one of the pair's"
        )


def check_weights(dictionary: SAE) -> None:
    """Refuse a dictionary with NaN or infinite weights, as diverged training leaves them.

    Raises:
        ValueError: a tensor is not finite; names the first one.
    """
    for name, tensor in dictionary.state_dict().items():
        check_finite(f"dictionary.{name}", tensor)


_known_finite: WeakKeyDictionary[SAE, tuple[Any, ...]] = WeakKeyDictionary()


def check_weights_once(dictionary: SAE) -> None:
    """Check the weights, unless they were checked before and no tensor has changed since."""
    seen = tuple((p.data_ptr(), tensor_version(p)) for p in dictionary.parameters())
    if _known_finite.get(dictionary) != seen:
        check_weights(dictionary)
        _known_finite[dictionary] = seen


def _check_models(trained_on: PairMetadata, used_with: PairMetadata) -> None:
    """Compare the models of a dictionary's record with those of a pair."""
    by_weights = True
    for name in ("base", "finetuned"):
        theirs, ours = (getattr(side, f"{name}_fingerprint") for side in (trained_on, used_with))
        if theirs and ours:
            agree = same_weights(ours, theirs)
        else:
            by_weights = False
            agree = Path(getattr(trained_on, name)).name == Path(getattr(used_with, name)).name
        if not agree:
            means = "their weights differ" if theirs and ours else "their names differ"
            raise InvalidValueError(
                f"the dictionary was trained on {trained_on.base!r} and "
                f"{trained_on.finetuned!r}, but the pair is {used_with.base!r} and "
                f"{used_with.finetuned!r}: the {name} models are not the same ({means}); load the "
                "pair it was trained on"
            )
        revisions = [getattr(side, f"{name}_revision") for side in (trained_on, used_with)]
        if not (theirs and ours) and revisions[0] != revisions[1]:
            warnings.warn(
                f"the dictionary was trained on revision {revisions[0]} of "
                f"{getattr(trained_on, name)!r}, "
                f"the pair has {revisions[1]}",
                stacklevel=4,
            )
    dtypes = [trained_on.dtype, used_with.dtype]
    if by_weights and None not in dtypes and dtypes[0] != dtypes[1]:
        warnings.warn(
            f"the dictionary was trained on the models in {dtypes[0]}, the pair's are in {dtypes[1]}, so "
            "small differences are rounded otherwise",
            stacklevel=4,
        )


def check_features(
    dictionary: SAE, features: FeatureIndices, *, name: str = "features", allow_empty: bool = True
) -> list[int]:
    """Return indices of features as a list of ints.

    Args:
        dictionary: the dictionary with the features.
        features: integers of any kind, in a list, an array or a tensor.
        name: the argument's name, for the message.
        allow_empty: accept an empty list.

    Raises:
        TypeError: not a list, or an item that is not an integer, such as True or 1.5.
        ValueError: an index that is negative, repeated or not in the dictionary; or an empty list.
    """
    found = check_indices(name, features, dictionary.cfg.d_sae)
    if not found and not allow_empty:
        raise InvalidValueError(f"`{name}` must hold at least one feature, got none; name one")
    return found
