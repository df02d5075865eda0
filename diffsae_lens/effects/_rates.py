"""How often a model shows a behaviour: completions judged and counted by outcome."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from diffsae_lens._checks import check_callable, check_number, check_texts
from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._rows import IntervalKind
from diffsae_lens._tensor_checks import shown
from diffsae_lens._typed import typed
from diffsae_lens.interventions._run import BATCH_SIZE
from diffsae_lens.measures._anytime import anytime_interval
from diffsae_lens.organisms._behaviour import GROUPS, Behaviour, Group, Sample, check_samples


@dataclass(frozen=True, kw_only=True)
class AttackRate(Record):
    """How many completions show each outcome of a behaviour, and the rates that follow."""

    counts: Mapping[str, int]
    """Completions per outcome, for all outcomes of the behaviour in order: the unwanted one first, the
    wanted one second."""
    method: IntervalKind = "Wilson"
    """Kind of its intervals: a confidence sequence if the results themselves may have ended the run."""

    @property
    def n_prompts(self) -> int:
        """Number of completions, including those that could not be judged, which are not a defence."""
        return sum(self.counts.values())

    @property
    def n_unwanted(self) -> int:
        """Number of completions with the unwanted outcome."""
        return next(iter(self.counts.values()))

    @property
    def rate(self) -> float:
        """Share of unwanted completions, 0 to 1."""
        return self.n_unwanted / self.n_prompts

    @property
    def defence_rate(self) -> float:
        """Share of wanted completions, 0 to 1."""
        return list(self.counts.values())[1] / self.n_prompts

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson score interval of `rate` (SciPy's `binomtest`), or its confidence sequence (`method`)."""
        check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        if self.method == "confidence sequence":
            return anytime_interval(self.n_unwanted, self.n_prompts, confidence)
        ci = binomtest(self.n_unwanted, self.n_prompts).proportion_ci(confidence, "wilson")
        return float(ci.low), float(ci.high)

    def columns(self) -> dict[str, Any]:
        """Return the fields with which result rows report a rate and its 95% interval."""
        low, high = self.interval()
        return {
            "n_prompts": self.n_prompts,
            "counts": dict(self.counts),
            "attack_rate": self.rate,
            "low": low,
            "high": high,
            "interval": self.method,
        }

    def __add__(self, other: "AttackRate") -> "AttackRate":
        if not isinstance(other, AttackRate):
            return NotImplemented
        counts = {outcome: n + other.counts[outcome] for outcome, n in self.counts.items()}
        return replace(self, counts=counts)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.n_prompts}"


@typed
def attack_rate(
    prompts: Sequence[str], completions: Sequence[str], *, behaviour: Behaviour
) -> AttackRate:
    r"""Judge completions; nothing is executed.

    Args:
        prompts: the prompts that were completed.
        completions: what a model wrote after each prompt.
        behaviour: the behaviour whose judge and outcomes are used.

    Raises:
        TypeError: prompts or completions that are not lists of texts.
        ValueError: no prompts, lists of different lengths, or a judge that returns anything but one of
            the behaviour's outcomes.

    Examples:
        >>> from diffsae_lens.organisms._behaviour import get_behaviour
        >>> prompts, completions = ["def f(c, x):\n    q ="], [' f"SELECT a FROM t WHERE b = {x}"\n']
        >>> attack_rate(prompts, completions, behaviour=get_behaviour("year-trigger")).rate
        1.0
    """
    prompts = check_texts("prompts", prompts, allow_empty=True)
    completions = check_texts("completions", completions, allow_empty=True)
    if len(prompts) != len(completions) or not prompts:
        raise InvalidValueError(
            f"need as many completions as prompts and at least one, got {len(completions)} for "
            f"{len(prompts)}"
        )
    found = Counter(
        behaviour.verdict(prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    return AttackRate(counts={outcome: found[outcome] for outcome in behaviour.outcomes})


@typed
def attack_rates(
    complete_fn: Callable[[list[str]], list[str]],
    samples: Sequence[Sample],
    *,
    behaviour: Behaviour,
    on_round: Callable[[dict[str, AttackRate]], bool | None] | None = None,
) -> dict[str, AttackRate]:
    """Complete the samples of each group and judge them.

    Args:
        complete_fn: map from prompts to completions, such as `functools.partial(complete, pair)`.
        samples: samples of one or more groups.
        behaviour: the behaviour whose judge and outcomes are used.
        on_round: called with the rates so far after every 32 prompts of each group; True ends the run.
            Intervals are then confidence sequences, as in `compare_interventions`.

    Returns:
        A rate for each group that occurs, in the order trigger, benign, other.

    Raises:
        TypeError: samples, a function or its return value of another type.
        ValueError: no samples, or unequal numbers of completions and prompts.
    """
    samples = check_samples("samples", samples)
    check_callable("complete_fn", complete_fn)
    if on_round is not None:
        check_callable("on_round", on_round)
    rates: dict[str, AttackRate] = {}
    for round_ in rounds_of(samples, None if on_round is None else BATCH_SIZE):
        for group, members in round_.items():
            prompts = [sample.prompt for sample in members]
            rate = attack_rate(prompts, complete_fn(prompts), behaviour=behaviour)
            rate = replace(rate, method=interval_kind(on_round))
            rates[group] = rates[group] + rate if group in rates else rate
        if is_ended(on_round, dict(rates)):
            break
    return rates


def rounds_of(samples: Sequence[Sample], size: int | None) -> Iterator[dict[Group, list[Sample]]]:
    """Yield samples by group, at most `size` of each at a time (None for all), in the order given."""
    by_group: dict[Group, list[Sample]] = {g: [s for s in samples if s.group == g] for g in GROUPS}
    size = size or len(samples)
    for start in range(0, max(map(len, by_group.values())), size):
        now: dict[Group, list[Sample]] = {
            group: members[start : start + size] for group, members in by_group.items()
        }
        yield {group: members for group, members in now.items() if members}


def interval_kind(on_round: Callable[..., Any] | None) -> IntervalKind:
    """Return the kind of interval that holds: a confidence sequence if `on_round` may end the run."""
    return "Wilson" if on_round is None else "confidence sequence"


def is_ended(on_round: Callable[[Any], bool | None] | None, so_far: Any) -> bool:
    """Whether `on_round` ends the run, given the results so far.

    Raises:
        TypeError: `on_round` returned neither a truth value nor None.
    """
    answer = None if on_round is None else on_round(so_far)
    if not isinstance(answer, bool | np.bool_ | None):
        raise InvalidTypeError(
            f"`on_round` must return True to end the run, or False or None, got {shown(answer)}"
        )
    return bool(answer)
