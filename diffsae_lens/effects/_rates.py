"""How often a model does what a behaviour says: completions judged and counted by outcome."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from diffsae_lens._checks import check_callable, check_number, check_texts
from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.organisms._behaviour import GROUPS, Behaviour, Sample, check_samples


@dataclass(frozen=True, kw_only=True)
class AttackRate(Record):
    """How many completions are what a behaviour writes, of how many, and what the others are."""

    counts: Mapping[str, int]
    """Completions by outcome, all outcomes of the behaviour in their order: the unwanted one first, the
    wanted one second."""

    @property
    def n_prompts(self) -> int:
        """All completions, including those that could not be judged, which are not a defence."""
        return sum(self.counts.values())

    @property
    def n_unwanted(self) -> int:
        """Completions that are what the behaviour writes."""
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
        """Wilson score interval of `rate` (SciPy's `binomtest`)."""
        check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        ci = binomtest(self.n_unwanted, self.n_prompts).proportion_ci(confidence, "wilson")
        return float(ci.low), float(ci.high)

    def columns(self) -> dict[str, Any]:
        """Return the fields by which rows of results report a rate, with its 95% Wilson interval."""
        low, high = self.interval()
        return {
            "n_prompts": self.n_prompts,
            "counts": dict(self.counts),
            "attack_rate": self.rate,
            "low": low,
            "high": high,
        }

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.n_prompts}"


@typed
def attack_rate(
    prompts: Sequence[str], completions: Sequence[str], *, behaviour: Behaviour
) -> AttackRate:
    r"""Judge completions; nothing is executed.

    Args:
        prompts: what was completed.
        completions: what a model wrote after each.
        behaviour: whose judge and outcomes are used.

    Raises:
        TypeError: prompts or completions that are not lists of texts.
        ValueError: none, the two differ in length, or a judge that returns something else than one of
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
) -> dict[str, AttackRate]:
    """Complete the samples of each group and judge them.

    Args:
        complete_fn: prompts to completions, such as `functools.partial(complete, pair)`.
        samples: of one or more groups.
        behaviour: whose judge and outcomes are used.

    Returns:
        A rate for each group that occurs, in the order trigger, benign, other.

    Raises:
        TypeError: something else in place of samples, a function or its completions.
        ValueError: no samples, or not as many completions as prompts.
    """
    samples = check_samples("samples", samples)
    check_callable("complete_fn", complete_fn)
    rates = {}
    for group in GROUPS:
        prompts = [sample.prompt for sample in samples if sample.group == group]
        if prompts:
            rates[group] = attack_rate(prompts, complete_fn(prompts), behaviour=behaviour)
    return rates
