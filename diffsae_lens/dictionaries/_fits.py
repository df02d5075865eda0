"""Whether a dictionary is one of a pair's: its hook, its width, its models, its kind; and its features."""

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
    """Return the virtual hook point a dictionary reads, having checked that it is this pair's.

    Models are compared by the fingerprints of their weights, so a folder may be moved or renamed. Only
    where the dictionary's record has none do the names of the models' folders have to agree.

    Raises:
        TypeError: not a pair, or not a dictionary.
        ValueError: a transcoder, no hook name in the metadata or none of this pair's, another width,
            trained on other models, or a mirrored pair; says both sides.

    Warns:
        UserWarning: the models have another precision or (compared by name) revision, or the pair's
            texts begin with a beginning-of-sequence token where those of the training did not, or the
            other way round.
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
    """Refuse a dictionary with weights that are NaN or infinite, as a diverged training leaves them.

    Raises:
        ValueError: names the first of them.
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
        dictionary: whose features they are.
        features: integers of any kind, in a list, an array or a tensor.
        name: what the argument is called, for the message.
        allow_empty: whether there may be none.

    Raises:
        TypeError: not a list, or something that is not an integer, such as True or 1.5.
        ValueError: one that the dictionary does not have, that is negative or repeated; or none.
    """
    found = check_indices(name, features, dictionary.cfg.d_sae)
    if not found and not allow_empty:
        raise InvalidValueError(f"`{name}` must hold at least one feature, got none; name one")
    return found
