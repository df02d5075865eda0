"""The independent judge: plain transformers and PEFT against a `HookedModelPair`."""

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformer_lens.hook_points import HookPoint

import diffsae_lens
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import load_pair
from tests.families.models import FAMILIES, read_model, write_model
from tests.families.variants import TOKENS, variants

LAYER = 1
HOOK = f"blocks.{LAYER}.hook_resid_post"
TOLERANCE = 1e-4  # of the reference's standard deviation; right pairs stay below 1e-5
N_GENERATED = 4
VISIBLE = 0.05  # the least a variant must change logits by, in standard deviations
PACKAGE = Path(diffsae_lens.__file__).parent

Kind = Literal["right", "refused", "raw error", "WRONG", "no such adapter"]


@dataclass(frozen=True)
class Outcome:
    """What became of one combination."""

    kind: Kind
    detail: str = ""
    """The message, or which numbers are wrong and by how many standard deviations."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What one model computes by itself."""

    logits: Tensor
    """`[batch, pos, d_vocab]`."""
    state: Tensor
    """The residual stream after block 1, `[batch, pos, d_model]`."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what transformers and PEFT say of deliberately odd adapters out of the way."""
    transformers.utils.logging.disable_progress_bar()
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        transformers.utils.logging.enable_progress_bar()


class Judge:
    """Makes models in a folder, each base once, and judges the pairs of them.

    Args:
        folder: an empty folder, for models of about 200 kB each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._base = lru_cache(maxsize=None)(self._make_base)

    def judge(self, family: str, variant: str) -> Outcome:
        """Make the pair of a family and a variant, and compare it with the two models alone."""
        with quiet(), torch.no_grad():
            outcome = self._judge(family, variant)
        return replace(outcome, detail=outcome.detail.replace(f"{self.folder / family}/", ""))

    def _judge(self, family: str, variant: str) -> Outcome:
        base, base_reference = self._base(family)
        how = variants(family)[variant]
        folder = base.parent / variant.replace(" ", "-").replace('"', "")
        try:
            how.write(FAMILIES[family], base, folder)
            model = None if how.must_be_refused else _read(base, folder)
            reference = None if model is None else _refer(model, family)
        except (ValueError, AttributeError, RuntimeError) as error:  # PEFT cannot make or run it
            if how.full:
                raise
            return Outcome("no such adapter", f"{type(error).__name__}: {error}")
        if reference is not None:
            _check_visible(base_reference, reference)
        try:
            given = how.door(base, folder) if how.door else (base, folder)
            pair = load_pair(*given, hook_names=[HOOK])
            if model is None or reference is None:
                return Outcome("WRONG", "accepted, though it does not fit the base")
            if how.generating:
                return _compare_generation(pair, read_model(base), model, family)
            return _compare(pair, base_reference, reference)
        except Exception as error:  # whatever it is, it is an outcome
            return _classify(error)

    def _make_base(self, family: str) -> tuple[Path, Reference]:
        folder = write_model(FAMILIES[family].build(), self.folder / family / "base")
        return folder, _refer(read_model(folder), family)


def _read(base: Path, folder: Path) -> Any:
    """The fine-tuned model, by transformers or PEFT alone."""
    if not (folder / "adapter_config.json").exists():
        return read_model(folder)
    return PeftModel.from_pretrained(read_model(base), str(folder)).eval()


def _refer(model: Any, family: str, tokens: Tensor = TOKENS) -> Reference:
    output = model(tokens, output_hidden_states=True, use_cache=False)
    index = LAYER + FAMILIES[family].has_embedding_state
    return Reference(output.logits, output.hidden_states[index])


def _check_visible(base: Reference, finetuned: Reference) -> None:
    change = _error(finetuned.logits, base.logits)
    if not change > VISIBLE:
        raise AssertionError(f"the variant changes the logits by {change:.1e} only")


def _error(value: Tensor, expected: Tensor) -> float:
    """The largest error, in standard deviations of what is expected."""
    return ((value - expected).abs().max() / expected.std()).item()


def _compare(pair: HookedModelPair, base: Reference, finetuned: Reference) -> Outcome:
    first = pair(TOKENS)
    with pair.base_model() as model:
        base_logits = model(TOKENS)
    _, cache = pair.run_with_cache(TOKENS)
    if f"{HOOK}.diff" not in cache:
        return Outcome("WRONG", f"{HOOK} never fires")
    return _outcome(
        {
            "fine-tuned logits": _error(first, finetuned.logits),
            "base logits": _error(base_logits, base.logits),
            ".diff": _difference_error(cache[f"{HOOK}.diff"], base.state, finetuned.state),
            "fine-tuned logits, once more": _error(pair(TOKENS), finetuned.logits),
        }
    )


def _compare_generation(pair: HookedModelPair, base: Any, finetuned: Any, family: str) -> Outcome:
    """Compare greedy generation, which uses caches, with one full forward pass a token."""
    tokens = TOKENS
    for _ in range(N_GENERATED):
        following = finetuned(tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], dim=1)
    read: list[Tensor] = []

    def look(value: Tensor, hook: HookPoint) -> None:
        read.append(value.clone())

    with pair.hooks([(f"{HOOK}.diff", look)]):
        generated = pair.generate(TOKENS, max_new_tokens=N_GENERATED, stop_at_eos=False)
    if not torch.equal(generated, tokens):
        return Outcome("WRONG", "other tokens are generated")
    if len(read) != N_GENERATED:
        return Outcome("WRONG", f".diff was shown in {len(read)} of {N_GENERATED} steps")
    states = [_refer(model, family, tokens).state for model in (base, finetuned)]
    errors = {}
    for end, value in enumerate(read, start=TOKENS.shape[1]):
        seen = slice(end - value.shape[1], end)  # the last token alone, or without a cache all
        errors[f".diff at token {end}"] = _difference_error(value, *(s[:, seen] for s in states))
    return _outcome(errors)


def _difference_error(found: Tensor, base: Tensor, finetuned: Tensor) -> float:
    """In standard deviations of the stream, not of the difference, which may be a small part of it."""
    return ((found - (finetuned - base)).abs().max() / base.std()).item()


def _outcome(errors: Mapping[str, float]) -> Outcome:
    wrong = [f"{name} off by {e:.2g}" for name, e in errors.items() if not e < TOLERANCE]
    if wrong:
        return Outcome("WRONG", ", ".join(wrong))
    return Outcome("right", f"{max(errors.values()):.1g}")


def _classify(error: Exception) -> Outcome:
    """A refusal is a ValueError or TypeError that this package itself raises."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError) and Path(last.filename).is_relative_to(PACKAGE):
        return Outcome("refused", message)
    return Outcome("raw error", f"{type(error).__name__}: {message} ({Path(last.filename).name})")
