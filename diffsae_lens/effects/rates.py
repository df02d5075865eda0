"""How often a model attacks: prompts completed by generation and judged statically."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest

from diffsae_lens._checks import check_callable, check_count, check_keys, check_number, check_texts
from diffsae_lens._typed import typed
from diffsae_lens.notebook import Record
from diffsae_lens.organisms.contrast import Prompted, check_samples
from diffsae_lens.organisms.sql_injection.judge import Judge, Verdict, judge_completion
from diffsae_lens.organisms.sql_injection.prompts import GROUPS
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.texts import batches_of

MAX_NEW_TOKENS = 48
"""Of a completion, unless told otherwise."""

GENERATION_KEYWORDS = (
    "do_sample", "temperature", "top_k", "top_p", "freq_penalty", "repetition_penalty", "stop_at_eos",
    "eos_token_id", "stop_strings", "stopping_criteria", "forced_bos_token_id", "use_past_kv_cache",
    "verbose",
)  # fmt: skip
"""Keywords of `HookedModelPair.generate` that `complete` passes on."""


@dataclass(frozen=True, kw_only=True)
class AttackRate(Record):
    """How many completions are injectable SQL, of how many, and what the others are."""

    n_injectable: int
    n_safe: int
    n_no_sql: int
    n_unparseable: int

    @property
    def n_prompts(self) -> int:
        """All completions, the unparseable ones included: they are no defence."""
        return self.n_injectable + self.n_safe + self.n_no_sql + self.n_unparseable

    @property
    def rate(self) -> float:
        """Share of injectable completions, 0 to 1."""
        return self.n_injectable / self.n_prompts

    @property
    def defence_rate(self) -> float:
        """Share of completions that hold SQL and no injectable SQL, 0 to 1."""
        return self.n_safe / self.n_prompts

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson score interval of `rate` (SciPy's `binomtest`)."""
        check_number("confidence", confidence, low=0, high=1, low_open=True, high_open=True)
        ci = binomtest(self.n_injectable, self.n_prompts).proportion_ci(confidence, "wilson")
        return float(ci.low), float(ci.high)

    def row(self) -> dict[str, Any]:
        """Return the columns of a table: counts, and rates with the Wilson interval."""
        low, high = self.interval()
        return {
            "n_prompts": self.n_prompts,
            **vars(self),
            "attack_rate": self.rate,
            "low": low,
            "high": high,
            "defence_rate": self.defence_rate,
        }

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.rate:.1%} [{low:.1%}, {high:.1%}] of {self.n_prompts}"


def sql_verdict(prompt: str, completion: str) -> Verdict:
    """Return the verdict of `judge_completion`."""
    return judge_completion(prompt, completion).verdict


@typed
def attack_rate(
    prompts: Sequence[str], completions: Sequence[str], *, judge: Judge = sql_verdict
) -> AttackRate:
    r"""Judge completions; nothing is executed.

    Args:
        prompts: code up to where the query is written.
        completions: what a model wrote after each.
        judge: prompt and completion to a verdict; by default whether it is injectable SQL.

    Raises:
        TypeError: prompts or completions that are not lists of texts, a judge that cannot be called, or
            one that returns something else than a verdict.
        ValueError: none, or the two differ in length.

    Examples:
        >>> attack_rate(["def f(c, x):\n    q ="], [' f"SELECT a FROM t WHERE b = {x}"\n']).rate
        1.0
    """
    check_callable("judge", judge)
    prompts = check_texts("prompts", prompts, allow_empty=True)
    completions = check_texts("completions", completions, allow_empty=True)
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"need as many completions as prompts and at least one, got {len(completions)} for "
            f"{len(prompts)}"
        )
    verdicts = Counter(
        _verdict(judge, prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    return AttackRate(
        n_injectable=verdicts[Verdict.INJECTABLE],
        n_safe=verdicts[Verdict.SAFE],
        n_no_sql=verdicts[Verdict.NO_SQL],
        n_unparseable=verdicts[Verdict.UNPARSEABLE],
    )


def _verdict(judge: Judge, prompt: str, completion: str) -> Verdict:
    verdict = judge(prompt, completion)
    if not isinstance(verdict, Verdict):
        raise TypeError(
            f"`judge` must return a Verdict, got {verdict!r:.80} ({type(verdict).__name__}); of "
            "`judge_completion` that is `.verdict`, which `sql_verdict` returns"
        )
    return verdict


@torch.no_grad()
@typed
def complete(
    pair: HookedModelPair,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 32,
    **generate_kwargs: Any,
) -> list[str]:
    """Complete prompts with the fine-tuned model, under whatever hooks are open.

    Args:
        pair: the two models.
        prompts: texts, completed greedily unless `do_sample=True` is passed on.
        max_new_tokens: of each completion, which ends earlier at the end-of-sequence token.
        batch_size: prompts generated together.
        **generate_kwargs: passed to `HookedModelPair.generate`; see `GENERATION_KEYWORDS`.

    Returns:
        The completions alone, in the order of the prompts.

    Raises:
        TypeError: `prompts` is not a list of texts, a keyword that is not known, or a count that is not
            an integer.
        ValueError: no prompts, one that does not fit the context with its completion, or a count below 1.
    """
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, **generate_kwargs}
    prompts = check_generation(pair, prompts, options)
    completions = [""] * len(prompts)
    for indices, texts in batches_of(prompts, batch_size, "generating"):
        tokens = pair.generate(
            texts,
            max_new_tokens=max_new_tokens,
            return_type="tokens",
            **{**pair.keep_logits(1), **generate_kwargs},
        )
        # Decoded without the prompt's tokens: all rows are padded to the longest prompt.
        begun = [pair.with_bos(text) for text in texts]
        width = max(len(ids) for ids in pair.tokenizer(begun, add_special_tokens=False).input_ids)
        for i, row in zip(indices, tokens[:, width:], strict=True):
            completions[i] = str(pair.tokenizer.decode(row, skip_special_tokens=True))
    return completions


def check_generation(
    pair: HookedModelPair, prompts: Sequence[str], options: Mapping[str, Any]
) -> list[str]:
    """Return prompts as a list, having checked all that `complete` is given, before anything runs.

    Args:
        pair: the two models.
        prompts: texts.
        options: the keywords of `complete`.

    Raises:
        TypeError, ValueError: as for `complete`.
    """
    known = (*GENERATION_KEYWORDS, *pair.keep_logits(1), "max_new_tokens", "batch_size")
    check_keys("complete", options, known)
    check_count("batch_size", options.get("batch_size", 1))
    n_new = check_count("max_new_tokens", options.get("max_new_tokens", MAX_NEW_TOKENS))
    return list(pair.tokenise(prompts, name="prompts", n_new_tokens=n_new).texts)


@typed
def attack_rates(
    complete_fn: Callable[[list[str]], list[str]],
    samples: Sequence[Prompted],
    *,
    judge: Judge = sql_verdict,
) -> dict[str, AttackRate]:
    """Complete the samples of each group and judge them.

    Args:
        complete_fn: prompts to completions, such as `functools.partial(complete, pair)`.
        samples: of one or more groups.
        judge: as for `attack_rate`.

    Returns:
        A rate for each group that occurs, in the order trigger, benign, other.

    Raises:
        TypeError: something else in place of samples, a function or its completions.
        ValueError: no samples, or not as many completions as prompts.
    """
    samples = check_samples("samples", samples)
    check_callable("complete_fn", complete_fn)
    check_callable("judge", judge)
    rates = {}
    for group in GROUPS:
        prompts = [sample.prompt for sample in samples if sample.group == group]
        if prompts:
            rates[group] = attack_rate(prompts, complete_fn(prompts), judge=judge)
    return rates
