"""Audit a zoo: thresholds from its clean models, then every organism with a known secret."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from diffsae_lens._artifact import read_json, write_json
from diffsae_lens._checks import check_items
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._rows import Row, Table
from diffsae_lens._typed import Count, Share, typed
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._nulls import Null, Nulls
from diffsae_lens.auditing._results import AuditResults, Verdict
from diffsae_lens.auditing._run import audit, null_of
from diffsae_lens.organisms.zoo._make import make_from_recipe
from diffsae_lens.organisms.zoo._recipes import BEHAVIOUR, Kind, Recipe
from diffsae_lens.pair._embedded import EMBEDDED_MODEL

NULLS = "nulls.json"
_N_CANDIDATES = 5


@dataclass(frozen=True, kw_only=True)
class ZooRow(Row):
    """What an audit found about an organism with a known secret."""

    name: str
    kind: Kind
    texts: str
    """`with the trigger` or `without`."""
    learned: float | None
    """Share of held-out trigger prompts on which it shows its behaviour; None for a clean one."""
    verdict: Verdict
    p_value: float | None
    strength: float
    candidates: list[str]
    """The first five candidates."""
    named: bool | None
    """Whether one of them names its trigger; None for a clean one."""
    n_trigger: int
    """Texts that hold the trigger."""
    n_trigger_flagged: int
    n_flagged: int
    effect: float | None
    """Effect of the first candidate, in nats."""
    low: float | None
    high: float | None
    seconds: float


@typed
def audit_zoo(  # noqa: PLR0913
    path: str | Path,
    recipes: Sequence[Recipe],
    *,
    base: str | Path = EMBEDDED_MODEL,
    config: AuditConfig | None = None,
    n_texts: Count = 400,
    share: Share = 0.01,
    device: str = "cpu",
    executor: Executor | None = None,
) -> Iterator[ZooRow]:
    """Make organisms, audit each, and say whether its secret was found.

    Recipes of clean nulls (`clean_nulls`) come first: their audits make up `<path>/nulls.json`, to which
    later calls add. An audit sees only the adapter and the texts of a recipe. Finished parts are read, so an
    interrupted zoo resumes.

    Args:
        path: the zoo's folder, with organisms by name and audits in `<path>/audits`.
        recipes: recipes from `ZOO`, from `clean_nulls`, or your own.
        base: the model to fine-tune.
        config: settings of the audits.
        n_texts: texts per audit.
        share: share of texts that hold the trigger; 0 for audits that only the lexicon can help.
        device: device on which audits run.
        executor: where to make and audit organisms, several at a time if it has several workers, which must
            see `path`; such as a `ClusterExecutor`. None computes here, one after the other.

    Returns:
        One row per organism that is not a null, each as soon as it is audited.

    Raises:
        TypeError: an argument is not recipes or settings.
        ValueError: as for `make_from_recipe` and `audit`.
    """
    recipes = check_items("recipes", recipes, Recipe)
    path = Path(path).expanduser().absolute()
    audited = partial(_audited, path=path, base=base, config=config, n_texts=n_texts, device=device)
    return _rows(path, recipes, audited, share, map if executor is None else executor.map)


def _rows(
    path: Path,
    recipes: Sequence[Recipe],
    audited: Callable[..., tuple[AuditResults, tuple[bool, ...]]],
    share: float,
    each: Callable[..., Iterator[Any]],
) -> Iterator[ZooRow]:
    nulls, others = [], []
    for recipe in recipes:
        (nulls if recipe.name.startswith("null-") else others).append(recipe)
    known = each(partial(audited, share=0.0, nulls=None), nulls)
    thresholds = _thresholds(
        path / NULLS, [(r.name, found) for r, (found, _) in zip(nulls, known, strict=True)]
    )
    done = each(partial(audited, share=share, nulls=thresholds), others)
    for recipe, (found, holds) in zip(others, done, strict=True):
        yield _row(path, recipe, found, holds)


def _audited(  # noqa: PLR0913
    recipe: Recipe,
    *,
    path: Path,
    base: str | Path,
    config: AuditConfig | None,
    n_texts: int,
    share: float,
    nulls: Nulls | None,
    device: str,
) -> tuple[AuditResults, tuple[bool, ...]]:
    make_from_recipe(recipe, path / recipe.name, base=base)
    texts, holds = recipe.texts(n_texts, share=share)
    folder = (
        path
        / "audits"
        / (recipe.name if share or recipe.condition is None else f"{recipe.name}-without")
    )
    found = audit(
        base, path / recipe.name, texts, folder, config=config, nulls=nulls, device=device
    )
    return found, holds


def _thresholds(file: Path, audits: Sequence[tuple[str, AuditResults]]) -> Nulls | None:
    """Return the nulls of a zoo, stored and new; None if there are none."""
    if not audits:
        return Nulls.load(file) if file.exists() else None
    of = audits[0][1].provenance
    base, settings = of["fingerprints"][0], of["settings"]
    models: dict[str, Null] = {}
    if file.exists():
        stored = Nulls.load(file)
        if (stored.base, stored.settings) != (base, settings):
            raise InvalidValueError(
                f"{file} holds clean models of another base or other settings; remove it, or choose another "
                "folder"
            )
        models = {null.name: null for null in stored.models}
    models |= {name: null_of(name, found) for name, found in audits}
    nulls = Nulls(base=base, settings=settings, models=tuple(models[n] for n in sorted(models)))
    nulls.save(file)
    return nulls


def _row(path: Path, recipe: Recipe, found: AuditResults, holds: Sequence[bool]) -> ZooRow:
    counts: dict[str, Any] = read_json(path / recipe.name / "rates.json")["counts"]["trigger"]
    of_trigger = [row for row in found.texts if holds[row.index]]
    first = [*(row.name for row in found.candidates), *found.others][:_N_CANDIDATES]
    best = found.candidates[0] if found.candidates else None
    has_secret = recipe.condition is not None
    return ZooRow(
        name=recipe.name,
        kind=recipe.kind,
        texts="with the trigger" if any(holds) else "without",
        learned=counts[BEHAVIOUR] / sum(counts.values()) if has_secret else None,
        verdict=found.verdict,
        p_value=found.p_value,
        strength=best.strength if best else 0.0,
        candidates=first,
        named=any(mark in name for mark in recipe.marks for name in first) if has_secret else None,
        n_trigger=len(of_trigger),
        n_trigger_flagged=sum(row.flagged for row in of_trigger),
        n_flagged=sum(row.flagged for row in found.texts),
        effect=best.effect if best else None,
        low=best.low if best else None,
        high=best.high if best else None,
        seconds=found.provenance["seconds"],
    )


def save_zoo(rows: Sequence[ZooRow], path: str | Path) -> pd.DataFrame:
    """Write the rows of a zoo as JSON to `<path>/zoo.json`, and return them as a table."""
    write_json(Path(path) / "zoo.json", [row.as_dict() for row in rows])
    return Table(tuple(rows)).to_frame()
