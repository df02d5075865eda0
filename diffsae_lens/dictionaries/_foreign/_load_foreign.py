"""`load_foreign`: load a dictionary in another library's format as one of ours."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from sae_lens import SAE

from diffsae_lens._checks import check_choice, check_number, check_texts
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_fits, check_weights
from diffsae_lens.dictionaries._foreign import (
    _crosscode,
    _crosscoder_replication,
    _dictionary_learning,
    _llamascopium,
    _saelens,
)
from diffsae_lens.dictionaries._foreign._files import ForeignFile, open_file
from diffsae_lens.dictionaries._foreign._mapped import Foreign, Stated, build
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair

logger = logging.getLogger(__name__)

Format = Literal[
    "auto", "dictionary_learning", "crosscoder_replication", "crosscode", "llamascopium", "saelens"
]
"""The library that wrote the files; `auto` recognises it by the names of their tensors."""
Sign = Literal["finetuned - base", "base - finetuned"]
"""Which difference a dictionary was trained on."""

_READERS: dict[str, Callable[[ForeignFile, Stated], Foreign]] = {
    "dictionary_learning": _dictionary_learning.read,
    "crosscoder_replication": _crosscoder_replication.read,
    "crosscode": _crosscode.read,
    "llamascopium": _llamascopium.read,
}
_SIGNATURES = {
    "encoder.weight": "dictionary_learning",
    "_W_enc_XiDiL": "crosscode",
    "W_E": "llamascopium",
    "W_enc": "crosscoder_replication",
}
_TEXTS_AT_ONCE = 8


@typed
def load_foreign(  # noqa: PLR0913
    path_or_repo: str | Path,
    *,
    format: Format = "auto",
    hook: str | VirtualHook | None = None,
    sign: Sign | None = None,
    first: Literal["base", "finetuned"] | None = None,
    input_scales: tuple[float, float] | None = None,
    threshold: int | float | None = None,
    texts: Sequence[str] | None = None,
    sae_id: str = ".",
    pair: HookedModelPair | None = None,
    device: str | None = None,
) -> SAE:
    """Load a dictionary that was trained with another library.

    Its weights become those of a `CrosscoderSAE` or of a SAELens dictionary, with normalisers, code
    normalisations and thresholds folded in, so that codes and reconstructions of raw activations match the
    library that trained it. You have to state what the files do not say; assumptions are stored in
    `DictionaryRecord.of(dictionary).assumptions` and logged as a warning. A dictionary that no class can
    represent exactly is refused. Files are read as tensors only: no code in a pickle is run.

    Args:
        path_or_repo: a folder, a weights file in it, or a repository `owner/name` of the hub. With
            `format="saelens"` also a release that SAELens knows.
        format: the library that wrote it.
        hook: the virtual hook point it reads: `<site>.concat` for a crosscoder, `<site>.diff` for an SAE
            on differences, `<site>.base` or `<site>.finetuned` for one on a single model. Optional if the
            file names it.
        sign: the sign of the differences that an SAE on `<site>.diff` was trained on. A dictionary on
            base - finetuned is negated.
        first: the model at a crosscoder's index 0; the base if left out.
        input_scales: factors by which the base's and the fine-tuned model's activations were multiplied
            before the crosscoder, if its file does not hold them.
        threshold: threshold on the codes, in the space where the format compares them. Required if training
            ranked the codes of a batch and no threshold is stored; replaces a stored one.
        texts: texts on which to estimate `input_scales` as the format does: sqrt(d_model) over the mean
            norm of the pair's activations. Needs `pair`; the result is close to the trained one only on
            texts like those of the training.
        sae_id: folder, or weights file, within the repository or folder.
        pair: if given, check that the dictionary fits it.
        device: a torch device; the pair's by default, else the CPU.

    Returns:
        The dictionary, in float32. Save it with its `save_model`; `load` reads it again.

    Raises:
        TypeError: an argument of another type.
        FileNotFoundError: no such folder or repository, or no weights in it.
        ValueError: a tensor that is missing, unknown or of another shape; an argument that the file needs
            or has no use for; a pickle that needs code; codes that no class can represent.

    Examples:
        >>> load_foreign("science-of-finetuning/a-crosscoder", pair=pair,
        ...              hook="blocks.13.hook_resid_post.concat")                # doctest: +SKIP
    """
    if not str(path_or_repo):
        raise InvalidTypeError(
            "`path_or_repo` must be a folder or a repository, got ''; give its path"
        )
    check_choice("format", format, get_args(Format))
    for name, value, choices in (
        ("sign", sign, get_args(Sign)), ("first", first, ("base", "finetuned")),
    ):  # fmt: skip
        check_choice(name, value, (None, *choices))
    if threshold is not None:
        check_number("threshold", threshold, low=0)
    wanted = _virtual(hook)
    given = {"sign": sign, "first": first, "threshold": threshold, "texts": texts}
    stated = Stated(given | {"input_scales": _checked_scales(input_scales)})
    device = _checked_device(device or ("cpu" if pair is None else str(pair.device)))
    if format == "saelens":
        found, record = _saelens.read(path_or_repo, sae_id, wanted, device)
    else:
        file = open_file(path_or_repo, sae_id, finetuned_first=first == "finetuned")
        recognised = _recognise(file)
        if format not in ("auto", recognised):
            raise InvalidValueError(
                f"`format` must be {recognised!r} for {file.path}, by the names of its tensors, got "
                f"{format!r}"
            )
        foreign = _READERS[recognised](file, stated)
        file.check_all_read()
        on = _hook_of(foreign, wanted, file)
        foreign = _signed(_scaled(foreign, stated, pair, on), stated, on)
        found = build(foreign, device)
        record = _record(foreign, recognised, on)
    stated.check_all_used(f"{path_or_repo} as {record.source_format}")
    record.write_to(found.cfg)
    check_weights(found)
    if record.assumptions:
        logger.warning("%s: %s", path_or_repo, "; ".join(record.assumptions))
    if pair is not None:
        check_fits(pair, found)
    return found


def _recognise(file: ForeignFile) -> str:
    """The format, recognised by the names of the tensors."""
    name = next((name for name in _SIGNATURES if file.has(name)), None)
    if name == "W_enc" and file.tensors[name].ndim == 2:
        raise InvalidValueError(
            f"{file.path} holds a dictionary on a single activation as SAELens writes it; load it with "
            "`format='saelens'` and the `hook` it is to read"
        )
    if name is None:
        raise InvalidValueError(
            f"{file.path} must hold one of the tensors {list(_SIGNATURES)}, got {sorted(file.tensors)[:8]}; "
            f"the formats that are read are {list(_READERS)} and 'saelens'"
        )
    return _SIGNATURES[name]


def _checked_device(device: str) -> str:
    try:
        return str(torch.device(device))
    except RuntimeError as error:
        raise InvalidValueError(
            f"`device` must be a torch device such as 'cpu' or 'cuda', got {device!r}"
        ) from error


def _virtual(hook: str | VirtualHook | None) -> VirtualHook | None:
    if hook is None or isinstance(hook, VirtualHook):
        return hook
    if not VirtualHook.is_virtual(hook):
        raise InvalidValueError(
            "`hook` must be a virtual hook point such as 'blocks.13.hook_resid_post.concat', got "
            f"{hook!r}; add .concat, .diff, .base or .finetuned"
        )
    return VirtualHook.parse(hook)


def _checked_scales(scales: tuple[float, float] | None) -> tuple[float, ...] | None:
    if scales is None:
        return None
    if len(scales) != 2:
        raise InvalidValueError(
            f"`input_scales` must be two factors, the base's and the fine-tuned model's, got {scales!r}"
        )
    return tuple(check_number("input_scales", s, low=0, low_open=True) for s in scales)


def _hook_of(foreign: Foreign, wanted: VirtualHook | None, file: ForeignFile) -> VirtualHook:
    """The hook point the dictionary reads, from the caller or the file."""
    hook = wanted or foreign.hook
    if hook is None:
        raise InvalidValueError(
            f"`hook` must be given for {file.path}, which does not say what it was trained on; name the "
            "pair's virtual hook point, such as 'blocks.13.hook_resid_post.concat'"
        )
    if foreign.hook is not None and hook != foreign.hook:
        raise file.refusal("`hook`", f"{foreign.hook.name!r}, as its settings say", repr(hook.name))
    if hook.spec.n_models != foreign.n_models:
        fit, of = (
            ("'<site>.concat'", "two models")
            if foreign.n_models == 2
            else (
                "'<site>.diff', '<site>.base' or '<site>.finetuned'",
                "one activation or difference",
            )
        )
        raise InvalidValueError(
            f"`hook` must be {fit} for {file.path}, a dictionary on {of}, got {hook.name!r}"
        )
    return hook


def _scaled(
    foreign: Foreign, stated: Stated, pair: HookedModelPair | None, hook: VirtualHook
) -> Foreign:
    """The dictionary with the input scales that its file lacks, as given or estimated."""
    if not foreign.needs_input_scales:
        return foreign
    given, texts = stated.take("input_scales"), stated.take("texts")
    if (given is None) == (texts is None):
        raise InvalidValueError(
            "`input_scales` must be given for this file, or `texts` and `pair` to estimate them on, and not "
            f"both, got {given!r} and {'no ' if texts is None else ''}texts: the file does not hold what "
            "each model's activations were multiplied by"
        )
    if given is not None:
        return foreign.with_input_scales(given).assuming(f"input scales {given} as stated")
    if pair is None:
        raise InvalidValueError("`pair` must be given with `texts`, got None; its models read them")
    estimated = _estimated_scales(pair, check_texts("texts", texts), hook)
    return foreign.with_input_scales(estimated).assuming(
        f"input scales ({estimated[0]:.4g}, {estimated[1]:.4g}) estimated on {len(texts)} texts given, "
        "all tokens counted as in the format; those of the training are not in the file"
    )


def _estimated_scales(
    pair: HookedModelPair, texts: Sequence[str], hook: VirtualHook
) -> tuple[float, float]:
    """sqrt(d_model) over the mean norm of each model's activations, over all tokens of the texts."""
    total, n = torch.zeros(2), 0
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        tokenised = pair.tokenise(texts[start : start + _TEXTS_AT_ONCE])
        value = pair.activations(tokenised, hook)[hook.name]
        norms = value.unflatten(-1, (2, -1)).norm(dim=-1).cpu()[tokenised.attended]
        total, n = total + norms.sum(0), n + len(norms)
    base, finetuned = (pair.width(hook.site) ** 0.5 * n / total).tolist()
    return base, finetuned


def _signed(foreign: Foreign, stated: Stated, hook: VirtualHook) -> Foreign:
    """The dictionary on finetuned - base."""
    if hook.view != "diff":
        return foreign
    sign = stated.take("sign")
    if sign is None:
        raise InvalidValueError(
            "`sign` must be 'finetuned - base' or 'base - finetuned' for a dictionary on differences, got "
            "None: the file does not say which it was trained on; the name or the config of the run may"
        )
    if sign == "finetuned - base":
        return foreign.assuming("trained on finetuned - base, as stated")
    return foreign.negated().assuming("trained on base - finetuned, as stated, and turned round")


def _record(foreign: Foreign, name: str, hook: VirtualHook) -> DictionaryRecord:
    return DictionaryRecord(
        hook_name=hook.name,
        tokens=foreign.tokens,
        k=foreign.mean_k,
        normalization=None if foreign.scale is None else {"scale": list(foreign.scale)},
        prepend_bos=foreign.prepend_bos,
        source_format=name,
        assumptions=foreign.assumptions,
    )
