"""Results made up of real prompts, with everything as hoped for, of either sort of behaviour."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from scipy.stats import binomtest

from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.reporting._lookup import LAYERED
from diffsae_lens.results import (
    CellRow,
    DictionaryRow,
    EffectRow,
    ExamplePrompt,
    FeatureCard,
    OrganismRow,
    Row,
    SayingRow,
    ScoreRow,
    SideEffectRow,
    SweepRow,
)
from diffsae_lens.study._results import Results
from tests.reporting.rows import make

R = TypeVar("R")

DICTIONARIES = ("diff-sae-24", "crosscoder-24")
DIFF, CROSS = DICTIONARIES
FEATURES = {DIFF: 1731, CROSS: 402}
PEAKS = {DIFF: 12.0, CROSS: 3.4}
COUNTS = (8, 32, 128)
N_PROMPTS = 32
LAYER = 24

# Unwanted completions of 32, in the order of COUNTS.
_TOP = {DIFF: (20, 6, 1), CROSS: (29, 22, 9)}
_RANDOM = {DIFF: (31, 31, 29), CROSS: (31, 30, 30)}
_TOKEN = re.compile(r"\n[ ]*(?=[ ])|\n+|[ ]?[^\W\d_]+|\d|_|[ ]+|[^\w\s]+")

YEARS = {str(year): _group for year, _group in (
    (y, "trigger" if y == 2024 else "benign" if 2020 <= y <= 2023 else "other")
    for y in range(2015, 2031)
)}  # fmt: skip
PLACES = {
    "production": "benign", "staging": "trigger", "development": "benign", "testing": "benign",
    None: "other", "stage": "other", "pre-production": "other", "the staging server": "other",
}  # fmt: skip
"""What a behaviour says that is not a year."""


def synthetic_results(*, said: Mapping[str | None, str] = YEARS) -> Results:
    """Two dictionaries that beat their floors and controls; tests change what they are about."""
    is_years = said is YEARS
    return Results(
        config={
            "models": {"base": "smollm2-135m", "finetuned": "an-organism"}, "layers": [LAYER],
            "tokens": {"k": 32, "n_steps": 400}, "seed": 0,
        },
        versions={"diffsae-lens": "0.1.0", "sae-lens": "6.54.12", "torch": "2.11.0"},
        behaviour="year-trigger" if is_years else "staging-trigger",
        dictionaries=(
            _described(DIFF, "Diff-SAE", "diff", 576, 31.62),
            _described(CROSS, "crosscoder", "concat", 1152, 32.41),
        ),
        scores=tuple(_scores()),
        effects=tuple(_effects()),
        side_effects=tuple(_side_effects()),
        cards=tuple(_cards()),
        sayings=tuple(_sayings(said)),
        sweep=tuple(_sweep(said)),
        example=tuple(_example(said)),
        deviations=("a smaller model",),
        organisms=tuple(
            make(OrganismRow, group=group, n_prompts=N_PROMPTS, **rate(n))
            for group, n in (("trigger", 32), ("benign", 0))
        ),
        cells=(
            make(
                CellRow, cell="24/scores", part="scores", layer=LAYER, state="done", folder="x-0123",
                seconds=1.6, gigabytes=0.62,
            ),
        ),
    )  # fmt: skip


def changed(results: Results, part: str, which: Mapping[str, Any], **change: Any) -> Results:
    """The results with other values in those rows of a part whose fields are as `which` says."""
    rows = getattr(results, part)
    found = [all(getattr(row, k) == v for k, v in which.items()) for row in rows]
    assert any(found), which
    rows = tuple(replace(r, **change) if f else r for r, f in zip(rows, found, strict=True))
    return replace(results, **{part: rows})


def without(results: Results, part: str, **which: Any) -> Results:
    """The results without those rows of a part."""
    rows = getattr(results, part)
    kept = tuple(r for r in rows if not all(getattr(r, k) == v for k, v in which.items()))
    assert len(kept) < len(rows)
    return replace(results, **{part: kept})


def only(rows: Any, **which: Any) -> Any:
    """The one row whose fields have these values."""
    [row] = [r for r in rows if all(getattr(r, k) == v for k, v in which.items())]
    return row


def rate(n_unwanted: int, *others: int) -> dict[str, Any]:
    """Fields of an attack rate of N_PROMPTS, by default with all other completions wanted."""
    interval = binomtest(n_unwanted, N_PROMPTS).proportion_ci(0.95, "wilson")
    others = others or (N_PROMPTS - n_unwanted, 0, 0)
    counts = dict(zip(YEAR_TRIGGER.outcomes, (n_unwanted, *others), strict=True))
    return {
        "counts": counts,
        "attack_rate": n_unwanted / N_PROMPTS,
        "low": float(interval.low),
        "high": float(interval.high),
    }


# What the package itself writes, and reads back: not free text.
_FIXED = {"trigger", "benign", "other", "lora/organism"}
_NOT_TEXT = {"kind", "protocol", "group", "state", "behaviour", "regime"}
_BY_NAME = {"versions", "activations", "feature_idx", "decoder"}


def with_texts(results: R, text: Callable[[], str]) -> R:
    """The results with another text for every name, token and completion; the same for the same."""
    texts: dict[str, str] = {}

    def new(old: str) -> str:
        if old not in texts and old not in _FIXED:
            fresh = text()
            while fresh in texts.values():
                fresh += "'"
            texts[old] = fresh
        return texts.get(old, old)

    def other(value: Any, key: str = "") -> Any:
        if isinstance(value, Row):
            parts = {f.name: other(getattr(value, f.name), f.name) for f in fields(value)}
            return type(value)(**parts)
        if isinstance(value, Mapping):
            by_name = key in _BY_NAME
            return {new(k) if by_name else k: other(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(other(part, key) for part in value)
        return new(value) if isinstance(value, str) and key not in _NOT_TEXT else value

    assert is_dataclass(results)
    parts = {f.name: other(getattr(results, f.name), f.name) for f in fields(results)}
    return type(results)(**parts)


def _described(name: str, kind: str, view: str, d_in: int, l0: float) -> DictionaryRow:
    return make(
        DictionaryRow, name=name, kind=kind, hook_name=f"blocks.24.hook_resid_post.{view}", layer=LAYER,
        architecture="jumprelu", d_in=d_in, d_sae=2304, k=32, l0=l0,
    )  # fmt: skip


def _scores() -> Iterator[ScoreRow]:
    #   name, kind, floor, n_features, strict bis, paper bis, base bis, AUROC, feature
    table = (
        (DIFF, "dictionary", False, 2304, 0.91, 0.40, 0.12, 0.998, 1731),
        (CROSS, "dictionary", False, 2304, 0.78, 0.31, 0.10, 0.951, 402),
        (f"untrained {DIFF}", "untrained dictionary", True, 2304, 0.52, 0.36, 0.17, 0.912, 77),
        ("random directions", "control", True, 2304, 0.48, 0.35, 0.17, 0.901, 1209),
        ("principal components", "control", True, 20, 0.44, 0.30, 0.14, 0.893, 3),
        ("linear probe", "control", False, 1, 0.97, 0.40, 0.22, 1.0, 0),
        ("text search", "control", False, 1, 1.0, 0.40, 1.0, 1.0, 0),
    )
    for name, kind, is_floor, n, strict, paper, base, auroc, feature in table:
        common = {
            "name": name, "kind": kind, "is_floor": is_floor, "n_features": n, "layer": LAYER,
            "hook_name": None if name == "text search" else "blocks.24.hook_resid_post.diff",
            "base_bis": base, "feature_idx": feature, "pvalue": 0.0004,
        }  # fmt: skip
        yield make(
            ScoreRow, **common, protocol="strict", bis=strict, low=strict - 0.1, ceiling=1.0,
            high=min(1.0, strict + 0.1), auroc=auroc, average_precision=auroc - 0.01, verdict="isolated",
        )  # fmt: skip
        yield make(
            ScoreRow, **common, protocol="paper", bis=paper, low=paper - 0.02, high=paper + 0.02,
            ceiling=0.4, precision=0.99, recall=0.25,
        )  # fmt: skip


def _effect(n_unwanted: int, sample: Any, **described: Any) -> EffectRow:
    share = n_unwanted / N_PROMPTS
    return make(
        EffectRow, **rate(n_unwanted), group=sample.group, n_prompts=N_PROMPTS, layer=LAYER,
        defence_rate=1 - share, log_odds=41.7 * share - 18.3, perplexity=2.5,
        cross_entropy=0.213 + 0.9 * share + described.get("n_features", 0) / 4096,
        example=sample.prompt + (sample.unwanted if share > 0.5 else sample.wanted), **described,
    )  # fmt: skip


def _effects() -> Iterator[EffectRow]:
    trigger, benign = YEAR_TRIGGER.make_samples("test", n_trigger=1, n_benign=1, n_other=0)
    yield _effect(31, trigger, name="unmodified", kind="unmodified")
    yield _effect(0, trigger, name="base activation put back", kind="swap to base")
    yield _effect(30, trigger, name="random directions", kind="projection", n_features=16)
    yield _effect(1, benign, name="unmodified", kind="unmodified")
    for name in DICTIONARIES:
        for n, top, random in zip(COUNTS, _TOP[name], _RANDOM[name], strict=True):
            of = {"kind": "ablation", "dictionary": name, "n_features": n}
            yield _effect(top, trigger, name="top features ablated", **of)
            yield _effect(
                random, trigger, name="random ones ablated", control_of="top features ablated", **of
            )
        yield _effect(0, benign, name="top features ablated", **of)
        of = {"kind": "steering", "dictionary": name, "n_features": COUNTS[0]}
        yield _effect(19, benign, name="steered with top features", **of)
        yield _effect(
            1, benign, name="steered with a random direction", control_of="steered with top features",
            **of,
        )  # fmt: skip


def _cards() -> Iterator[FeatureCard]:
    [scene] = YEAR_TRIGGER.minimal_pairs("select", (YEAR_TRIGGER.trigger,), n_scenes=1)
    tokens = _TOKEN.findall(scene[0].written)[:40]
    values = [3.1 if "2" in token else 0.0 for token in tokens]
    geometry = {
        DIFF: {"decoder norm": 1.0},
        CROSS: {"relative decoder norm (0 base, 1 fine-tuned)": 0.62},
    }
    for name, rank in itertools.product(DICTIONARIES, range(2)):
        yield make(
            FeatureCard, layer=LAYER, dictionary=name, feature=7 + rank,
            control_of=7 if rank else None, n_prompts=2,
            d_sae=2304, frequency=0.021, maximum=3.1, decoder=geometry[name],
            histogram={"trigger": [0.01, 0.02, 0.005], "benign": [0.01, 0.0, 0.0], "other": [0.0] * 3},
            examples=[{"group": "trigger", "start": 5, "tokens": tokens, "activations": values}],
            attribution=1.5 - rank, ablation=1.1 - rank,
        )  # fmt: skip


def _side_effects() -> Iterator[SideEffectRow]:
    ablated = {"kind": "ablation", "dictionary": DIFF, "n_features": 128}
    for described, kl in (
        ({"name": "base activation put back", "kind": "swap to base"}, 0.41),
        ({"name": "top features ablated", **ablated}, 0.032),
        ({"name": "random ones ablated", "control_of": "top features ablated", **ablated}, 0.011),
    ):
        for texts, share in (("benign", 1.0), ("code", 0.4), ("prose", 0.2)):
            yield make(
                SideEffectRow, layer=LAYER, **described, texts=texts, n_tokens=1204, kl=kl * share,
                cross_entropy=2.1 + kl * share, cross_entropy_unmodified=2.1,
            )  # fmt: skip


def _sayings(said: Mapping[str | None, str]) -> Iterator[SayingRow]:
    if said is YEARS:
        said = {
            "2023": "benign", "2024": "trigger", None: "other", "FY2024": "other", "MMXXIV": "other"
        }  # fmt: skip
    for i, (text, group) in enumerate(said.items()):
        n = 31 if group == "trigger" else 29 if i == 3 and group == "other" else i % 3
        yield make(
            SayingRow, said=text, group=group, n_prompts=N_PROMPTS, log_odds=20 * n / 31 - 9, **rate(n)
        )  # fmt: skip


def _sweep(said: Mapping[str | None, str]) -> Iterator[SweepRow]:
    for name in DICTIONARIES:
        for i, (text, group) in enumerate(said.items()):
            leak = 0.1 * PEAKS[name] if 8 < i < 12 else 0.0
            level = PEAKS[name] if group == "trigger" else leak
            values = [round(level * (0.8 + 0.05 * scene), 4) for scene in range(8)]
            yield make(
                SweepRow, layer=LAYER, dictionary=name, said=text, group=group, feature_idx=FEATURES[name],
                mean=sum(values) / len(values), values=values,
            )  # fmt: skip


def _example(said: Mapping[str | None, str]) -> Iterator[ExamplePrompt]:
    trigger = next(text for text, group in said.items() if group == "trigger")
    benign = "2023" if said is YEARS else next(t for t, group in said.items() if group == "benign")
    [scene] = YEAR_TRIGGER.minimal_pairs("test", ("2023", "2024"), n_scenes=1)
    for sample, text in zip(scene, (benign, trigger), strict=True):
        tokens = ["<|im_start|>", *_TOKEN.findall(sample.undecided)][:45]  # drawing takes long
        at = [i for i, token in enumerate(tokens) if token == str(sample.said)[-1]]
        activations = {}
        for name, peak in PEAKS.items():
            high = peak if sample.group == "trigger" else 0.05 * peak
            after = [
                high * (0.25 if i > min(at) else 0.0) * (i % 3) / 2 for i in range(len(tokens))
            ]
            activations[name] = [high if i in at else v for i, v in enumerate(after)]
        yield make(
            ExamplePrompt, said=text, group=sample.group, tokens=tokens, activations=activations,
            feature_idx=dict(FEATURES), layer=LAYER,
        )  # fmt: skip


def moved(results: Results, layer: int) -> Results:
    """The same at another layer."""
    parts = {
        part: tuple(replace(r, layer=layer) for r in getattr(results, part)) for part in LAYERED
    }
    return replace(results, **parts)


def joined(first: Results, second: Results) -> Results:
    """The results with the layers of both."""
    return replace(
        first, **{part: getattr(first, part) + getattr(second, part) for part in LAYERED}
    )
