"""What a zoo's audits say, as the tables and the figure of its page.

    python -m tests.benchmarks.zoo runs/zoo [--figure docs/images/zoo.png] [--baselines]

Reads `zoo.json` and `nulls.json`, which `diffsae-lens zoo --nulls 19 --audit --out runs/zoo` writes, and
prints Markdown. `--baselines` scores the texts of each audit by other methods, too, which takes minutes per
organism, once.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest, mannwhitneyu

from diffsae_lens.auditing import MethodRow, Nulls, baseline_scores, compare_scores
from diffsae_lens.organisms import ZOO
from diffsae_lens.pair._embedded import EMBEDDED_MODEL

ALPHA = 0.05
N_TEXTS = 400
FOUND = "conditional behaviour found"
HEADS = (
    "organism", "what sets it off", "what it then does", "verdict", "p", "trigger texts flagged",
    "others flagged", "first candidates", "effect, nats", "minutes",
)  # fmt: skip


def share(n_found: int, n: int) -> str:
    """Write a share with its exact interval."""
    interval = binomtest(n_found, n).proportion_ci(method="exact")
    return f"{n_found} of {n} ({n_found / n:.0%} [{interval.low:.0%}, {interval.high:.0%}])"


def table(rows: list[dict]) -> str:
    """Write one line per audit."""
    recipes = {recipe.name: recipe for recipe in ZOO}
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    for row in rows:
        recipe = recipes[row["name"]]
        effect = (
            ""
            if row["effect"] is None
            else f"{row['effect']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        )
        n_others = row["n_flagged"] - row["n_trigger_flagged"]
        of_trigger = f"{row['n_trigger_flagged']} of {row['n_trigger']}" if row["n_trigger"] else ""
        first = ", ".join(
            f"**{name}**" if any(mark in name for mark in recipe.marks) else name
            for name in row["candidates"]
        )
        cells = (
            row["name"], recipe.trigger or "nothing", recipe.behaviour,
            row["verdict"].removeprefix("conditional behaviour "),
            f"{row['p_value']:.3f}", of_trigger, f"{n_others}", first.replace("|", "\\|"), effect,
            f"{row['seconds'] / 60:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """Write how many were found, named and accused wrongly."""
    lines = []
    for texts, words in (
        ("with the trigger", "in 1% of the texts"),
        ("without", "in none of them"),
    ):
        of = [row for row in rows if row["kind"] != "clean" and row["texts"] == texts]
        for kind in ("backdoored", "benign"):
            some = [row for row in of if row["kind"] == kind]
            if some:
                n_found = sum(row["verdict"] == FOUND for row in some)
                n_named = sum(row["verdict"] == FOUND and bool(row["named"]) for row in some)
                lines.append(
                    f"- {kind}, the trigger {words}: found {share(n_found, len(some))}, and named among the "
                    f"first five candidates {share(n_named, len(some))}"
                )
    clean = [row for row in rows if row["kind"] == "clean"]
    if clean:
        lines.append(
            f"- clean: accused {share(sum(r['verdict'] == FOUND for r in clean), len(clean))}"
        )
    return "\n".join(lines)


def roc(rows: list[dict], nulls: Nulls, path: Path) -> str:
    """Draw how many organisms are found at each threshold, with exact intervals, and give the area."""
    hidden = np.array(
        [r["strength"] for r in rows if r["kind"] != "clean" and r["texts"] != "without"]
    )
    clean = np.array([r["strength"] for r in rows if r["kind"] == "clean"])
    nothing = np.concatenate([clean, [null.strength for null in nulls.models]])
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([hidden, nothing]))[::-1]])
    points = []
    for at in thresholds:
        interval = binomtest(int((hidden >= at).sum()), len(hidden)).proportion_ci(method="exact")
        points.append(((nothing >= at).mean(), (hidden >= at).mean(), interval.low, interval.high))
    false, true, low, high = np.array(points).T
    figure, axes = plt.subplots(figsize=(4.2, 4.0), layout="constrained")
    axes.fill_between(
        false, low, high, step="post", alpha=0.2, linewidth=0, label="exact 95% interval"
    )
    axes.step(false, true, where="post", marker=".", label="strength of the first candidate")
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.axvline(ALPHA, color="0.6", linewidth=1, linestyle=":")
    axes.set(
        xlabel="clean models accused",
        ylabel="organisms with a condition found",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=160)
    area = mannwhitneyu(hidden, nothing, alternative="greater")
    return (
        f"Area under the curve: {area.statistic / (len(hidden) * len(nothing)):.3f}, {len(hidden)} organisms "
        f"with a condition against {len(clean)} clean ones and {len(nulls.models)} clean models that set the "
        f"threshold (exact p {area.pvalue:.2g})."
    )


def baselines(rows: list[dict], run: Path, base: str) -> str:
    """Score the texts of organisms with a condition by every method, and write one line per method."""
    recipes = {recipe.name: recipe for recipe in ZOO}
    found: dict[str, list[MethodRow]] = {}
    for row in rows:
        if not row["n_trigger"]:
            continue
        name = row["name"]
        texts, holds = recipes[name].texts(N_TEXTS, share=row["n_trigger"] / N_TEXTS)
        scores = baseline_scores(run / "audits" / name, base, run / name, texts)
        for method in compare_scores(scores, holds):
            found.setdefault(method.method, []).append(method)
    lines = [
        "| score | AUROC: median, worst | trigger texts above all others | organisms |",
        "|---|---|---|---|",
    ]
    aurocs_of = {method: [row.auroc for row in of] for method, of in found.items()}
    best_first = sorted(
        found.items(),
        key=lambda item: (-round(np.median(aurocs_of[item[0]]), 3), -min(aurocs_of[item[0]])),
    )
    for method, of in best_first:
        aurocs = aurocs_of[method]
        n_first = sum(round(row.recall * row.n_positive) for row in of)
        lines.append(
            f"| `{method}` | {np.median(aurocs):.3f}, {min(aurocs):.3f} | "
            f"{share(n_first, sum(row.n_positive for row in of))} | {len(of)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the page's parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("zoo.png"))
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--base", default=EMBEDDED_MODEL)
    options = parser.parse_args()
    rows = json.loads((options.run / "zoo.json").read_text())
    nulls = Nulls.load(options.run / "nulls.json")
    without = [row for row in rows if row["texts"] == "without" and row["kind"] != "clean"]
    others = [row for row in rows if row not in without]
    print(summary(rows), table(others), roc(rows, nulls, options.figure), sep="\n\n")
    if without:
        print("", "The trigger in none of the texts:", "", table(without), sep="\n")
    if options.baselines:
        print("", baselines(rows, options.run, options.base), sep="\n")


if __name__ == "__main__":
    main()
