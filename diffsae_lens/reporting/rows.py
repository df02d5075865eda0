"""Reading `results.json`: the rows a figure or a table needs, or a clear error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

UNMODIFIED = "unmodified"
BASE_BACK = "base activation put back"
TOP_ABLATED, RANDOM_ABLATED = "top features ablated", "random features ablated"
CONTROLS = {
    TOP_ABLATED: RANDOM_ABLATED,
    "steered with top features": "steered with a random direction",
}
"""What is done with the features that were chosen, and what it is compared with."""

_KEYS = {
    "scores": (
        "name", "kind", "n_features", "bis_last", "bis_mean", "ceiling", "auroc",
        "average_precision", "feature_idx",
    ),
    "causes": (
        "name", "dictionary", "n_features", "group", "n_prompts", "n_injectable", "n_safe",
        "n_no_sql", "n_unparseable", "attack_rate", "low", "high", "log_odds", "cross_entropy",
        "example",
    ),
    "features": (
        "dictionary", "feature", "d_sae", "frequency", "maximum", "histogram", "examples", "decoder",
        "attribution", "ablation", "is_control", "n_prompts",
    ),
    "harm": ("name", "texts", "n_tokens", "kl", "cross_entropy", "cross_entropy_unmodified"),
    "sayings": ("said", "n_prompts", "attack_rate", "low", "high", "log_odds"),
    "years": ("name", "year", "feature_idx", "mean", "values"),
}  # fmt: skip
_DICTIONARY_KEYS = ("hook_name", "architecture", "d_in", "d_sae", "k", "l0_held_out")
_CONFIG_KEYS = ("base", "finetuned", "layers", "n_score_prompts", "n_likelihood_prompts")


def rows_of(results: Row, part: str) -> list[Row]:
    """Return the rows of a table such as `scores` or `causes`, all their keys checked.

    Raises:
        ValueError: the part is missing or empty, or a row lacks a key.
    """
    rows = results.get(part)
    if not isinstance(rows, Sequence) or not rows:
        raise ValueError(f"`results` has no rows in {part!r}; pass what `run_demo` returned")
    for i, row in enumerate(rows):
        _require(row, _KEYS[part], f"row {i} of {part!r}")
    return list(rows)


def config_of(results: Row) -> Row:
    """Return the run's config.

    Raises:
        ValueError: it is missing, or what the report says from it is.
    """
    _require(results, ("config",), "`results`")
    _require(results["config"], _CONFIG_KEYS, "the config")
    return results["config"]


def part_of(results: Row, part: str) -> Row:
    """Return a part of the results that is a mapping, such as `versions`.

    Raises:
        ValueError: it is missing.
    """
    _require(results, (part,), "`results`")
    return results[part]


def dictionaries_of(results: Row) -> Row:
    """Return what the dictionaries are, by name.

    Raises:
        ValueError: there is none, or something of one is missing.
    """
    dictionaries = part_of(results, "dictionaries")
    if not dictionaries:
        raise ValueError("`results` describes no dictionary in 'dictionaries'")
    for name, described in dictionaries.items():
        _require(described, _DICTIONARY_KEYS, f"the dictionary {name!r}")
    return dictionaries


def examples_of(results: Row) -> tuple[list[Row], list[str]]:
    """Return the prompts of the minimal pair and the names of the dictionaries read on them.

    Raises:
        ValueError: there is no prompt or dictionary, or not one activation a token.
    """
    prompts = part_of(results, "example").get("prompts")
    if not prompts:
        raise ValueError("`results` has no prompts in 'example'; pass what `run_demo` returned")
    for prompt in prompts:
        _require(prompt, ("year", "tokens", "activations"), "a prompt of 'example'")
    names = list(prompts[0]["activations"])
    if not names:
        raise ValueError("the prompts of 'example' have no dictionary in 'activations'")
    for prompt in prompts:
        _require(prompt["activations"], names, f"the prompt of {prompt['year']} in 'example'")
        for name in names:
            n_tokens, n_values = len(prompt["tokens"]), len(prompt["activations"][name])
            if n_tokens != n_values:
                raise ValueError(
                    f"the prompt of {prompt['year']} in 'example' has {n_tokens} tokens but "
                    f"{n_values} activations of {name!r}"
                )
    return list(prompts), names


def find_cause(
    rows: Iterable[Row],
    name: str,
    *,
    group: str = "trigger",
    dictionary: str | None = None,
    n_features: int | None = None,
) -> Row:
    """Return the causal row of an intervention.

    Args:
        rows: of the causal table.
        name: the intervention.
        group: the prompts it was measured on.
        dictionary: whose features, None for interventions without a dictionary.
        n_features: how many of them; None for any number.

    Raises:
        ValueError: there is none.
    """
    for row in rows:
        if (row["name"], row["group"], row["dictionary"]) == (name, group, dictionary) and (
            n_features is None or row["n_features"] == n_features
        ):
            return row
    of = "" if dictionary is None else f", {n_features} features of {dictionary!r}"
    raise ValueError(f"`results` has no row {name!r} on {group} prompts{of} in 'causes'")


def ablations(rows: Iterable[Row]) -> dict[str, list[tuple[Row, Row]]]:
    """Pair every ablation of top features on trigger prompts with that of as many random ones.

    Returns:
        For each dictionary its pairs `(top, random)` by rising number of features.

    Raises:
        ValueError: there is no ablation, or one without its control.
    """
    rows = list(rows)
    pairs: dict[str, list[tuple[Row, Row]]] = {}
    for row in rows:
        if (row["name"], row["group"]) == (TOP_ABLATED, "trigger"):
            name, n_features = row["dictionary"], row["n_features"]
            control = find_cause(rows, RANDOM_ABLATED, dictionary=name, n_features=n_features)
            pairs.setdefault(name, []).append((row, control))
    if not pairs:
        raise ValueError(f"`results` has no row {TOP_ABLATED!r} on trigger prompts in 'causes'")
    return {name: sorted(p, key=lambda pair: pair[0]["n_features"]) for name, p in pairs.items()}


def by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group rows by their `name`, in the order in which names first occur."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def rate_text(row: Row) -> str:
    """Write an attack rate with its interval.

    Examples:
        >>> rate_text({"attack_rate": 0.5, "low": 0.25, "high": 0.75})
        '50% [25%, 75%]'
    """
    return f"{row['attack_rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _require(mapping: Row, keys: Iterable[str], where: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {missing}; pass what `run_demo` returned")
