"""What the cells of a study made, put together in `results.json`."""

from collections.abc import Iterator, Mapping, Sequence
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
from diffsae_lens.study._stages import Stage
from diffsae_lens.study._step import ROWS as ROWS_FILE

RESULTS = "results.json"


def write_results(
    config: StudyConfig, stages: Sequence[Stage], plan: Plan, folders: Mapping[str, Path]
) -> Results:
    """Put the results together and write them, unless the file says the same already."""
    rows: dict[str, Any] = {n: tuple(r) for n, r in _collected(stages, folders).items()}
    results = Results(
        config=plain(asdict(config)),
        versions=_versions(folders),
        behaviour=config.behaviour_name,
        published=tuple(published_rows()) if config.pooled is not None else (),
        deviations=config.deviations,
        contrasts=tuple(_contrasts(config, stages, folders)),
        cells=tuple(_cells(stages, plan)),
        **rows,
    )
    file, made = plan.path / RESULTS, plain(results.as_dict())
    try:
        stored = read_json(file) if file.exists() else None
    except ValueError as error:
        set_aside(file, str(error))
        stored = None
    if isinstance(stored, dict) and _comparable(stored) == _comparable(made):
        return Results.from_dict(stored)  # nothing to write, so the disk may be read-only
    if isinstance(stored, dict) and stored.get("cells") == made["cells"]:
        set_aside(file, "it does not say what the cells of the run say")
    write_json(file, made)
    return Results.load(file)


def _comparable(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without what changes nothing: where the models were."""
    config = results.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("models"), dict):
        return dict(results)
    models = {k: v for k, v in config["models"].items() if k not in ("base", "finetuned", "device")}
    return {**results, "config": {**config, "models": models}}


def _collected(stages: Sequence[Stage], folders: Mapping[str, Path]) -> dict[str, list[Row]]:
    """The rows of all cells, each with its regime."""
    rows: dict[str, list[Row]] = {}
    layers = {(s.regime, s.layer) for s in stages if s.cell.name in folders}
    for stage in stages:
        folder = folders.get(stage.cell.name)
        if folder is None or not (folder / ROWS_FILE).exists():
            continue
        for part, of_cell in read_json(folder / ROWS_FILE).items():
            for stored in of_cell:
                row = replace(ROWS[part].from_dict(stored), regime=stage.regime)  # type: ignore[call-arg]
                if (stage.regime, getattr(row, "layer", None)) in layers | {(stage.regime, None)}:
                    rows.setdefault(part, []).append(row)
    return rows


def _contrasts(
    config: StudyConfig, stages: Sequence[Stage], folders: Mapping[str, Path]
) -> list[ContrastRow]:
    scores: dict[tuple[str | None, int], dict[str, Scored]] = {}
    for stage in stages:
        folder = folders.get(stage.cell.name)
        if stage.part != "scores" or stage.layer is None or folder is None:
            continue
        rows = [ScoreRow.from_dict(row) for row in read_json(folder / ROWS_FILE)["scores"]]
        strict = [row for row in rows if row.protocol == "strict"]
        resampled = load_file(folder / RESAMPLED)["strict"]
        scores[stage.regime, stage.layer] = {
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


def _cells(stages: Sequence[Stage], plan: Plan) -> Iterator[CellRow]:
    states = {state["cell"]: state for state in plan.states()}
    for stage in stages:
        state = {k: v for k, v in states[stage.cell.name].items() if k != "problem"}
        yield CellRow(**state, part=stage.part, regime=stage.regime, layer=stage.layer)


def _versions(folders: Mapping[str, Path]) -> dict[str, str]:
    """The packages that made the results, as the cells' manifests say: the newest of each."""
    manifests = [read_manifest(folder) for folder in folders.values()]
    found = [manifest.made.get("versions", {}) for manifest in manifests if manifest is not None]
    return {name: version for versions in found for name, version in versions.items()}
