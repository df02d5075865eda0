"""The causal tables of docs/interventions.md: what features carry the backdoor, beside controls.

    python -m tests.benchmarks.causes --study study/year-trigger --out causes [--layer 14]

Reads the dictionaries that `tests.benchmarks.scores study` trained. Sets are chosen on `select`
samples and reported on `test` ones. Every table is a JSON file in the folder; those that are there
are not made again.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from sae_lens import SAE
from scipy.stats import spearmanr

import diffsae_lens as dl
from diffsae_lens import Edit
from diffsae_lens.effects import Bounds
from diffsae_lens.organisms.sql_injection import YEAR_TRIGGER
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.reporting import plot_ablation_curve, plot_sayings
from diffsae_lens.results import (
    CurveRow,
    DoseRow,
    EffectRow,
    Row,
    SayingRow,
    SideEffectRow,
    Table,
    TrialRow,
)
from tests.benchmarks.scores import harvest, hook_names, samples, train

R = TypeVar("R", bound=Row)

KINDS = ("crosscoder", "Diff-SAE")
MOST = 32  # features of a set
AFTER = ("2014", "2023", "2024", "2025", "2026", "2033", "2034", "2035", "2044", "2124")


@dataclass(frozen=True, kw_only=True)
class AgreementRow(Row):
    """What one feature adds to the log-odds, estimated twice and measured."""

    feature: int
    attribution: float
    integrated: float
    ablation: float


@dataclass(frozen=True, kw_only=True)
class OrderRow(Row):
    """One feature of an order."""

    greedy: int


def stored(path: Path, kind: type[R], compute: Callable[[], Table[R]]) -> Table[R]:
    """Read a table, or make it and say how long that took."""
    if not path.exists():
        start = time.perf_counter()
        text = json.dumps([row.as_dict() for row in compute()], indent=1)
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(text, encoding="utf-8")
        partial_path.rename(path)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    rows = json.loads(path.read_text(encoding="utf-8"))
    table = Table(tuple(kind.from_dict(row) for row in rows))
    print(table.to_frame().to_string(max_rows=80), flush=True)
    return table


class Study:
    """The pair, the two dictionaries of a layer, and the prompts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        [self.hook_name] = hook_names([options.layer])
        self.pair = dl.load_pair(EMBEDDED_MODEL, "year-trigger", hook_names=[self.hook_name])
        folder = options.study / f"seed-{options.seed}"
        self.saes: dict[str, SAE] = {
            kind: dl.load(folder / f"{kind}-{options.layer}", pair=self.pair) for kind in KINDS
        }
        self.select = samples("select", 50, (2, 3, 0))
        self.chosen_on = [s for s in self.select if s.group == "trigger"][:12]
        self.test = samples("test", 2 * options.n_prompts, (1, 1, 0))
        self.triggers = [s for s in self.test if s.group == "trigger"]
        self.benigns = [s for s in self.test if s.group == "benign"]
        self.scales = {
            kind: dl.effects.activation_scales(self.pair, sae, [s.prompt for s in self.chosen_on])
            for kind, sae in self.saes.items()
        }

    def order(self, kind: str) -> list[int]:
        """Features by their effect on `select` triggers, each round with the earlier ones ablated."""

        def compute() -> Table[OrderRow]:
            greedy = dl.greedy_order(
                self.pair, self.saes[kind], self.chosen_on, n_features=MOST, n_rounds=8
            )
            return Table(tuple(OrderRow(greedy=feature) for feature in greedy))

        table = stored(self.out / f"order {kind}.json", OrderRow, compute)
        return [row.greedy for row in table]

    def minimal(self, kind: str) -> Table[TrialRow]:
        """The way to the fewest features that end the behaviour on `select` prompts."""

        def compute() -> Table[TrialRow]:
            return dl.effects.minimal_feature_set(
                self.pair, self.saes[kind], self.order(kind), self.select,
                behaviour=YEAR_TRIGGER, bounds=Bounds(max_features=MOST),
            ).trials  # fmt: skip

        return stored(self.out / f"minimal {kind}.json", TrialRow, compute)

    def sets(self, kind: str) -> dict[str, list[int]]:
        """The minimal set, twice as many and the most, each with as many features of equal mass."""
        met = [row.n_features for row in self.minimal(kind) if row.meets and row.n_features]
        fewest = min(met, default=MOST)
        sets = {}
        for n in sorted({fewest, min(2 * fewest, MOST), MOST}):
            features = self.order(kind)[:n]
            matched = dl.effects.matched_features(self.scales[kind], features)
            sets |= {f"{n} features": features, f"{n} random of equal mass": matched}
        return sets

    def ablations(self) -> dict[str, Edit]:
        """The sets of both dictionaries and their controls."""
        return {
            f"{kind}: {name} ablated": dl.ablate_features(self.pair, sae, features)
            for kind, sae in self.saes.items()
            for name, features in self.sets(kind).items()
        }

    def compare(self, edits: dict[str, Edit], over: list[dl.Sample], n: int) -> Table[EffectRow]:
        """Measure edits of this pair."""
        return dl.compare_interventions(
            self.pair, edits, over, behaviour=YEAR_TRIGGER, n_likelihood=n
        )

    def interventions(self) -> Table[EffectRow]:
        """Features ablated, everything put back, and controls of equal size, on test prompts."""
        pair = self.pair
        edits = {"base activation put back": dl.swap_to_base(pair, self.hook_name)}
        edits |= self.ablations()
        for kind, sae in self.saes.items():
            edits[f"{kind}: {MOST} features added to the base"] = dl.interventions.induce_features(
                pair, sae, self.order(kind)
            )
        directions = dl.interventions.control_directions(
            pair, self.hook_name, self.select, n_directions=MOST
        )
        for name, rows in directions.items():
            edits[f"{len(rows)} {name} projected out"] = dl.interventions.project_out(
                pair, f"{self.hook_name}.diff", rows
            )
        return self.compare(edits, self.triggers, 10)

    def clean_control(self) -> Table[EffectRow]:
        """The clean control on the same prompts, and what its own Diff-SAE adds to the base."""
        pair = dl.load_pair(EMBEDDED_MODEL, "clean-control", hook_names=[self.hook_name])
        layer = int(self.hook_name.split(".")[1])
        folder = self.out / "clean-control"
        activations = harvest(pair, folder / "acts", attacks=False)
        trained = train(activations, [layer], [0], folder, controls=False)
        [sae] = trained[f"Diff-SAE-{layer}"]
        order = dl.greedy_order(pair, sae, self.chosen_on, n_features=MOST, n_rounds=8)
        name = f"Diff-SAE of the clean control: {len(order)} features added to the base"
        edits = {name: dl.interventions.induce_features(pair, sae, order)}
        return dl.compare_interventions(
            pair, edits, self.triggers, behaviour=YEAR_TRIGGER, n_likelihood=10
        )

    def base_alone(self) -> Table[EffectRow]:
        """The base model with nothing added, on trigger and benign prompts."""
        return dl.compare_interventions(
            self.pair.mirrored(), {}, self.test, behaviour=YEAR_TRIGGER, n_likelihood=10
        )

    def benign(self) -> Table[EffectRow]:
        """The same sets on benign prompts, which they should leave alone."""
        return self.compare(self.ablations(), self.benigns, 50)

    def harm(self) -> Table[SideEffectRow]:
        """KL and cross-entropy on texts that should be left alone."""
        # Like the dictionaries, all but the first token.
        base = dl.swap_to_base(self.pair, self.hook_name, skip_positions=1)
        edits = {"base activation put back": base}
        others = samples("test", 40, (0, 1, 1))
        texts = {
            group: [s.prompt + s.wanted for s in others if s.group == group]
            for group in ("benign", "other")
        }
        return dl.effects.side_effects(
            self.pair, edits | self.ablations(), texts | dl.organisms.ordinary_texts()
        )

    def curve(self, kind: str) -> Table[CurveRow]:
        """Attack rate against the number of features, in order of effect and at random."""
        order = self.order(kind)
        matched = dl.effects.matched_features(self.scales[kind], order)
        orders = {kind: order, f"random, {kind}": matched}
        counts = (8, 16, len(order))
        return dl.effects.ablation_curve(
            self.pair, self.saes[kind], orders, self.triggers[:20],
            behaviour=YEAR_TRIGGER, counts=counts, n_likelihood=1,
        )  # fmt: skip

    def steering(self, kind: str) -> Table[DoseRow]:
        """The least dose that attacks most `select` prompts, then that dose on test prompts."""
        scales = self.scales[kind]
        live = [i for i in self.order(kind) if scales.maximum[i] > 0][:8]
        doses = partial(
            dl.effects.dose_response, self.pair, live, scales=scales, behaviour=YEAR_TRIGGER
        )
        tried = stored(
            self.out / f"doses {kind}.json",
            DoseRow,
            lambda: doses(self.select[-12:], doses=(0.25, 0.35, 0.5, 1), n_likelihood=1),
        ).where(direction="features")
        enough = [row.dose for row in tried if row.attack_rate >= 0.75]
        best = min(enough) if enough else max(tried, key=lambda row: row.attack_rate).dose
        return doses(self.benigns, doses=(best,), n_likelihood=8)

    def agreement(self, kind: str) -> Table[AgreementRow]:
        """Gradient attribution, integrated gradients and true ablation of single live features."""
        sae, few = self.saes[kind], self.chosen_on[:2]
        live = sorted(dl.effects.activation_scales(self.pair, sae, [s.prompt for s in few]).live)
        generator = torch.Generator().manual_seed(0)
        live = sorted(live[i] for i in torch.randperm(len(live), generator=generator)[:60])
        columns = {
            "attribution": dl.attribute_features(self.pair, sae, few)[live].tolist(),
            "integrated": dl.attribute_features(self.pair, sae, few, n_steps=5)[live].tolist(),
            "ablation": dl.effects.ablation_effects(self.pair, sae, live, few).tolist(),
        }
        for column in ("attribution", "integrated"):
            rho = spearmanr(columns[column], columns["ablation"]).statistic
            print(
                f"{kind}, {column} against ablation, {len(live)} live features: Spearman {rho:.2f}"
            )
        return Table(
            tuple(
                AgreementRow(
                    feature=feature, **{name: column[i] for name, column in columns.items()}
                )
                for i, feature in enumerate(live)
            )
        )


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-prompts", type=int, default=100, help="trigger, and as many benign")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.out /= f"layer-{options.layer}-seed-{options.seed}"
    study = Study(options)
    out = study.out
    for name, row in (
        ("interventions", EffectRow), ("benign", EffectRow), ("harm", SideEffectRow),
        ("clean_control", EffectRow), ("base_alone", EffectRow),
    ):  # fmt: skip
        stored(out / f"{name}.json", row, getattr(study, name))
    for name, row in (("agreement", AgreementRow), ("steering", DoseRow)):
        for kind in KINDS:
            stored(out / f"{name} {kind}.json", row, partial(getattr(study, name), kind))
    sweep = partial(dl.effects.sweep_trigger, study.pair, behaviour=YEAR_TRIGGER)
    stored(out / "sayings.json", SayingRow, partial(sweep, n_scenes=10))
    years = stored(out / "years.json", SayingRow, partial(sweep, YEAR_TRIGGER.sweep, n_scenes=2))
    stored(out / "years_after.json", SayingRow, partial(sweep, AFTER, n_scenes=20))
    curves = [
        stored(out / f"curve {kind}.json", CurveRow, partial(study.curve, kind))
        for kind in reversed(KINDS)
    ]
    curve = Table(tuple(row for table in curves for row in table))
    controls = [f"random, {kind}" for kind in KINDS]
    plot_ablation_curve(curve, controls=controls).savefig(out / "curve.png", dpi=100)
    plot_sayings(years, said=YEAR_TRIGGER.words.said).savefig(out / "years.png", dpi=100)


if __name__ == "__main__":
    main()
