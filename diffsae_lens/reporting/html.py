"""The reports: HTML files that need no network, no fonts and no JavaScript."""

import base64
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import to_rgb

from diffsae_lens._artifact import write_text
from diffsae_lens._display import TOKEN_LIMIT, cut, shown_tokens, visible
from diffsae_lens.organisms.sql_injection.prompts import BENIGN_YEARS, TRIGGER_YEAR
from diffsae_lens.reporting.effects import plot_year_effects
from diffsae_lens.reporting.figures import plot_ablation, plot_tokens, plot_years
from diffsae_lens.reporting.rows import (
    BASE_BACK,
    CONTROLS,
    UNMODIFIED,
    Row,
    ablations,
    by_name,
    config_of,
    dictionaries_of,
    examples_of,
    find_cause,
    part_of,
    rate_text,
    rows_of,
)
from diffsae_lens.reporting.style import Figure, dictionary_colour, needs_light_ink, png, tint
from diffsae_lens.reporting.summary import at_ceiling, summarise

TOKENS_LIMIT = 8_000
"""Characters of a text that is shown token by token: each token is an element of the page."""


def write_report(results: dict[str, Any], path: Path) -> Path:
    """Write the report of a run.

    Args:
        results: what `run_demo` returned.
        path: the HTML file; its folder is made where it is missing. It is written under another
            name and renamed, so that no half-written report is found there.

    Returns:
        `path`.

    Raises:
        ValueError: `results` lacks something the report shows; nothing is written then.
        OSError: the file cannot be written.
    """
    return write_html(render_report(results), path)


def write_html(html: str, path: Path) -> Path:
    """Write a page under another name and rename it; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return path


def render_report(results: dict[str, Any]) -> str:
    """Return the report as HTML.

    Args:
        results: what `run_demo` returned.

    Returns:
        A whole document.

    Raises:
        ValueError: `results` lacks something the report shows.
    """
    return render("report.html.jinja", _context(results))


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill one of the package's templates; everything in the context is escaped and cut to `LIMIT`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffsae_lens.reporting", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rate"] = rate_text
    environment.tests["at_ceiling"] = at_ceiling
    return environment.get_template(template).render(context)


def _shown(value: object) -> object:
    """A value on its way into a page; what the templates themselves made passes."""
    return value if isinstance(value, Markup) else visible(cut(str(value)))


def _context(results: Row) -> dict[str, Any]:
    config, scores, causes = (
        config_of(results),
        rows_of(results, "scores"),
        rows_of(results, "causes"),
    )
    return {
        "config": config,
        "findings": summarise(results),
        "dictionaries": [row for row in scores if row["kind"] == "dictionary"],
        "floors": [row for row in scores if row["kind"] != "dictionary"],
        "sections": _sections(causes),
        "features": [_card(row) for row in rows_of(results, "features")],
        "heat": _heat_map(scores, config["layers"]),
        "harm": rows_of(results, "harm"),
        "year_captions": list(_year_captions(rows_of(results, "years"))),
        "coloured": _coloured(results),
        "examples": _examples(causes),
        "trigger_year": TRIGGER_YEAR,
        "benign_years": BENIGN_YEARS,
        "trained": dictionaries_of(results),
        "versions": part_of(results, "versions"),
        "seconds": part_of(results, "seconds"),
        "command": _command(config),
        # Last: what is missing is said before anything is drawn.
        "years": embedded_image(plot_years(results)),
        "tokens": embedded_image(plot_tokens(results)),
        "ablation": embedded_image(plot_ablation(results)),
        "sayings": embedded_image(plot_year_effects(_sayings(results))),
    }


def embedded_image(figure: Figure) -> Markup:
    """The figure as a data URI, at twice the size it is shown at."""
    return Markup("data:image/png;base64," + base64.b64encode(png(figure)).decode("ascii"))


def _sayings(results: Row) -> pd.DataFrame:
    """The ways to say the year, as text that pandas can hold: it refuses lone surrogates."""
    rows = rows_of(results, "sayings")
    keys = ("attack_rate", "low", "high", "log_odds")
    return pd.DataFrame(
        [{"said": visible(str(row["said"])), **{key: row[key] for key in keys}} for row in rows]
    )


def _sections(causes: Sequence[Row]) -> list[dict[str, Any]]:
    """The causal table by prompts and dictionary, each control under what it controls for."""
    grouped: dict[tuple[str, str | None], list[Row]] = {}
    for group in ("trigger", "benign"):
        for row in causes:
            if row["group"] == group:
                grouped.setdefault((group, row["dictionary"]), []).append(row)
    return [
        {
            "group": group,
            "dictionary": dictionary,
            "colour": _css_colour(dictionary or ""),
            "rows": [
                {"row": row, "label": _label(row), "is_control": is_control}
                for row, is_control in _with_controls(rows)
            ],
        }
        for (group, dictionary), rows in grouped.items()
    ]


def _with_controls(rows: Sequence[Row]) -> Iterator[tuple[Row, bool]]:
    controls = {(row["name"], row["n_features"]): row for row in rows}
    shown = set()
    for row in rows:
        if row["name"] in CONTROLS.values():
            continue
        yield row, False
        key = (CONTROLS.get(row["name"], ""), row["n_features"])
        if key in controls:
            shown.add(key)
            yield controls[key], True
    for key, row in controls.items():
        if row["name"] in CONTROLS.values() and key not in shown:
            yield row, True


def _label(row: Row) -> str:
    """The intervention with how many features it was on.

    Examples:
        >>> _label({"name": "steered with random features", "n_features": 8})
        'steered with 8 random features'
    """
    name, n = str(row["name"]), row["n_features"]
    if name.endswith("projected out") and n > 1:
        name = f"{n} {name}"
    return name.replace("random features", f"{n} random features").replace("top f", f"top {n} f")


def _year_captions(rows: Sequence[Row]) -> Iterator[str]:
    for name, of_name in by_name(rows).items():
        at = next(row for row in of_name if row["year"] == TRIGGER_YEAR)
        others = [row for row in of_name if row["year"] != TRIGGER_YEAR]
        text = f"{name} reads {at['mean']:.3g} on average in {TRIGGER_YEAR}"
        if others:
            highest = max(others, key=lambda row: row["mean"])
            text += f" and at most {highest['mean']:.3g} in another year ({highest['year']})"
        yield text + "."


def _css_colour(name: str) -> str:
    return " ".join(str(round(255 * part)) for part in to_rgb(dictionary_colour(name)))


def _coloured(results: Row) -> list[dict[str, Any]]:
    """The minimal pair's tokens with their values, for each dictionary."""
    prompts, names = examples_of(results)
    out = []
    for name in names:
        peak = max((max(p["activations"][name], default=0.0) for p in prompts), default=0.0)
        blocks = [
            {"year": p["year"], **_token_block(name, p["tokens"], p["activations"][name], peak)}
            for p in prompts
        ]
        out.append({"name": name, "colour": _css_colour(name), "prompts": blocks})
    return out


def _card(row: Row) -> dict[str, Any]:
    """A feature with its histograms as heights and its examples as coloured tokens."""
    name, peak = row["dictionary"], row["maximum"]
    tallest = max(share for shares in row["histogram"].values() for share in shares) or 1.0
    return {
        **row,
        "colour": _css_colour(name),
        "bars": {
            group: {
                "heights": [f"{100 * share / tallest:.1f}" for share in shares],
                "active": sum(shares),
            }
            for group, shares in row["histogram"].items()
        },
        "blocks": [
            {
                "group": e["group"],
                "spans": _spans(name, e["tokens"], e["activations"], peak, start=e["start"]),
            }
            for e in row["examples"]
        ],
    }


def _heat_map(scores: Sequence[Row], layers: Sequence[int]) -> dict[str, Any] | None:
    """AUROC by what is scored and layer; None for a single layer, which the table shows as well."""
    if len(layers) < 2:
        return None
    cells: dict[str, dict[int, float]] = {}
    by_text = {str(layer): layer for layer in layers}
    for row in scores:
        name, _, layer = row["name"].rpartition("-")
        if layer in by_text:
            cells.setdefault(name, {})[by_text[layer]] = row["auroc"]
    return {"layers": list(layers), "rows": cells}


def _token_block(
    name: str, tokens: Sequence[str], values: Sequence[float], peak: float
) -> dict[str, Any]:
    strongest = sorted(range(len(tokens)), key=lambda i: -values[i])[:3]
    return {
        "spans": _spans(name, tokens, values, peak),
        "strongest": [
            (i, repr(cut(tokens[i], TOKEN_LIMIT)), values[i]) for i in strongest if values[i] > 0
        ],
    }


def _spans(
    name: str, tokens: Sequence[str], values: Sequence[float], peak: float, *, start: int = 0
) -> list[dict[str, Any]]:
    """Tokens, the first being number `start` of its text, with how strong their ground is."""
    pairs = list(zip(tokens, values, strict=True))
    spans = []
    for i, text in shown_tokens(tokens, limit=TOKENS_LIMIT):
        token, value = ("", 0.0) if i is None else pairs[i]
        share = min(max(value / peak, 0.0), 1.0) if peak > 0 else 0.0
        title = "" if i is None else f"token {start + i} {cut(token, TOKEN_LIMIT)!r}: {value:.3f}"
        spans.append(
            {
                "text": text.replace("\n", "↵\n"),
                "title": title,
                "share": f"{share:.3f}",
                "light": needs_light_ink(tint(dictionary_colour(name), share)),
            }
        )
    return spans


def _examples(causes: Sequence[Row]) -> list[dict[str, str]]:
    """What was written on one trigger prompt; the lines all of them share are set apart."""
    rows = [find_cause(causes, UNMODIFIED), find_cause(causes, BASE_BACK)]
    for pairs in ablations(causes).values():
        rows.extend(pairs[-1])
    texts = [row["example"] for row in rows]
    n_same = sum(1 for _ in takewhile(lambda c: len(set(c)) == 1, zip(*texts, strict=False)))
    start = texts[0][:n_same].rfind("\n") + 1
    return [
        {
            "label": _label(row) + (f", {row['dictionary']}" if row["dictionary"] else ""),
            "shared": text[:start],
            "rest": text[start:],
        }
        for row, text in zip(rows, texts, strict=True)
    ]


def _command(config: Mapping[str, Any]) -> str:
    """The command that does the run again."""
    words = ["diffsae-lens", "demo", "--out", "runs/again"]
    for name, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += ["--" + name.replace("_", "-"), *(str(v) for v in values)]
    return shlex.join(words)
