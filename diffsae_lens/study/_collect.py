"""Collect what the cells of a study computed in `results.json`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from diffsae_lens._artifact import plain, read_json, set_aside, write_json
from diffsae_lens.results import CellRow, ContrastRow, Row, ScoreRow
from diffsae_lens.study._cells import read_manifest
from diffsae_lens.study._config import StudyConfig
from diffsae_lens.study._contrasts import Scored, Trained, contrasts
from diffsae_lens.study._plan import Plan
from diffsae_lens.study._published import published_rows
from diffsae_lens.study._results import ROWS, Results
from diffsae_lens.study._scoring import RESAMPLED
from diffsae_lens.study._step import ROWS as ROWS_FILE

RESULTS = "results.json"


def write_results(config: StudyConfig, plan: Plan, folders: Mapping[str, Path]) -> Results:
    """Collect the results of the cells in these folders, and write them unless they are already written."""
    rows: dict[str, Any] = {n: tuple(r) for n, r in _collected(plan, folders).items()}
    results = Results(
        config=plain(asdict(config)),
        versions=_versions(folders),
        behaviour=config.behaviour_name,
        published=tuple(published_rows()) if config.pooled is not None else (),
        deviations=config.deviations,
        contrasts=tuple(_contrasts(config, plan, folders)),
        cells=tuple(_cells(plan)),
        **rows,
    )
    file, made = plan.path / RESULTS, plain(results.as_dict())
    try:
        stored = read_json(file) if file.exists() else None
    except ValueError as error:
        set_aside(file, str(error))
        stored = None
    if isinstance(stored, dict) and _comparable(stored) == _comparable(made):
        return Results.from_dict(stored)  # nothing to write: the disk may be read-only
    if isinstance(stored, dict) and stored.get("cells") == made["cells"]:
        set_aside(file, "it does not say what the cells of the run say")
    write_json(file, made)
    return Results.load(file)


def _comparable(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return results without what makes no difference: where the models were."""
    config = results.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("models"), dict):
        return dict(results)
    models = {k: v for k, v in config["models"].items() if k not in ("base", "finetuned", "device")}
    return {**results, "config": {**config, "models": models}}


def _collected(plan: Plan, folders: Mapping[str, Path]) -> dict[str, list[Row]]:
    """Return the rows of all cells, each with its regime."""
    rows: dict[str, list[Row]] = {}
    steps = {name: cell.config for name, cell in plan.cells.items() if name in folders}
    layers = {(step.regime, step.layer) for step in steps.values()}
    for name, step in steps.items():
        file = folders[name] / ROWS_FILE
        for part, of_cell in (read_json(file) if file.exists() else {}).items():
            for stored in of_cell:
                row = replace(ROWS[part].from_dict(stored), regime=step.regime)  # type: ignore[call-arg]
                if (step.regime, getattr(row, "layer", None)) in layers | {(step.regime, None)}:
                    rows.setdefault(part, []).append(row)
    return rows


def _contrasts(config: StudyConfig, plan: Plan, folders: Mapping[str, Path]) -> list[ContrastRow]:
    scores: dict[tuple[str | None, int], dict[str, Scored]] = {}
    for name, cell in plan.cells.items():
        if cell.config.part != "scores" or name not in folders:
            continue
        rows = [ScoreRow.from_dict(row) for row in read_json(folders[name] / ROWS_FILE)["scores"]]
        strict = [row for row in rows if row.protocol == "strict"]
        resampled = load_file(folders[name] / RESAMPLED)["strict"]
        scores[cell.config.regime, cell.config.layer] = {
            row.name: Scored(bis=row.bis, resampled=of_row)
            for row, of_row in zip(strict, resampled, strict=True)
            if row.kind == "dictionary"
        }
    trained = {
        name: Trained(kind=spec.kind, recipe=part)
        for part, training in config.trained.items()
        for name, spec in training.by_name.items()
    }
    return contrasts(scores, trained)


def _cells(plan: Plan) -> Iterator[CellRow]:
    states = {state.pop("cell"): state for state in plan.states()}
    for name, cell in plan.cells.items():
        step = cell.config
        state = {k: v for k, v in states[name].items() if k != "problem"}
        yield CellRow(cell=name, part=step.part, regime=step.regime, layer=step.layer, **state)


def _versions(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return the package versions that made the results, from the cells' manifests."""
    manifests = [read_manifest(folder) for folder in folders.values()]
    found = [manifest.made.get("versions", {}) for manifest in manifests if manifest is not None]
    return {name: version for versions in found for name, version in versions.items()}
