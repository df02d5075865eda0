"""The causal tables of docs/interventions.md: what features carry the backdoor, beside controls.

    python -m tests.benchmarks.causes --study study/year-trigger --out causes [--layer 14]

Reads the dictionaries that `tests.benchmarks.scores study` trained. Sets are chosen on `select`
samples and reported on `test` ones. Every table is a CSV file in the folder; those that are there
are not made again.
"""

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from sae_lens import SAE
from scipy.stats import spearmanr

import diffsae_lens as dl
from diffsae_lens.effects.sweep import SAYINGS
from diffsae_lens.interventions.side_by_side import Intervene
from diffsae_lens.pair.embedded import EMBEDDED_MODEL
from diffsae_lens.reporting.effects import plot_ablation_curve, plot_year_effects
from tests.benchmarks.scores import harvest, hook_names, samples, train

KINDS = ("crosscoder", "Diff-SAE")
MOST = 32  # features of a set
AFTER = (2014, 2023, 2024, 2025, 2026, 2033, 2034, 2035, 2044, 2124)


def table(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Read a table, or make it and say how long that took."""
    if not path.exists():
        start = time.perf_counter()
        frame = compute()
        partial_path = path.with_suffix(".partial")
        frame.to_csv(partial_path, index=False)
        partial_path.rename(path)
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
    frame = pd.read_csv(path)
    print(frame.to_string(max_rows=80), flush=True)
    return frame


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
            kind: dl.activation_scales(self.pair, sae, [s.prompt for s in self.chosen_on])
            for kind, sae in self.saes.items()
        }

    def order(self, kind: str) -> list[int]:
        """Features by their effect on `select` triggers, each round with the earlier ones ablated."""

        def compute() -> pd.DataFrame:
            greedy = dl.greedy_order(
                self.pair, self.saes[kind], self.chosen_on, n_features=MOST, n_rounds=8
            )
            return pd.DataFrame({"greedy": greedy})

        return table(self.out / f"order {kind}.csv", compute).greedy.tolist()

    def minimal(self, kind: str) -> pd.DataFrame:
        """The way to the fewest features that end the attack on `select` prompts."""
        return table(
            self.out / f"minimal {kind}.csv",
            lambda: (
                dl.minimal_feature_set(
                    self.pair, self.saes[kind], self.order(kind), self.select, max_features=MOST
                ).frame
            ),
        )

    def sets(self, kind: str) -> dict[str, list[int]]:
        """The minimal set, twice as many and the most, each with as many features of equal mass."""
        trials = self.minimal(kind)
        met = trials[trials.meets & (trials.n_features > 0)].n_features
        fewest = int(met.min()) if len(met) else MOST
        sets = {}
        for n in sorted({fewest, min(2 * fewest, MOST), MOST}):
            features = self.order(kind)[:n]
            [matched] = dl.matched_features(self.scales[kind], features)
            sets |= {f"{n} features": features, f"{n} random of equal mass": matched}
        return sets

    def ablations(self) -> dict[str, Intervene]:
        """The sets of both dictionaries and their controls."""
        return {
            f"{kind}: {name} ablated": partial(dl.ablate_features, self.pair, sae, features)
            for kind, sae in self.saes.items()
            for name, features in self.sets(kind).items()
        }

    def interventions(self) -> pd.DataFrame:
        """Features ablated, everything put back, and controls of equal size, on test prompts."""
        pair = self.pair
        opened = {"base activation put back": partial(dl.swap_to_base, pair, self.hook_name)}
        opened |= self.ablations()
        for kind, sae in self.saes.items():
            opened[f"{kind}: {MOST} features added to the base"] = partial(
                dl.induce_features, pair, sae, self.order(kind)
            )
        directions = dl.control_directions(pair, self.hook_name, self.select, n_directions=MOST)
        for name, rows in directions.items():
            opened[f"{len(rows)} {name} projected out"] = partial(
                dl.project_out, pair, f"{self.hook_name}.diff", rows
            )
        return dl.compare_interventions(pair, opened, self.triggers, n_likelihood=10)

    def clean_control(self) -> pd.DataFrame:
        """The clean control on the same prompts, and what its own Diff-SAE adds to the base."""
        pair = dl.load_pair(EMBEDDED_MODEL, "clean-control", hook_names=[self.hook_name])
        layer = int(self.hook_name.split(".")[1])
        folder = self.out / "clean-control"
        activations = harvest(pair, folder / "acts", attacks=False)
        trained = train(activations, [layer], [0], folder, controls=False)
        [sae] = trained[f"Diff-SAE-{layer}"]
        order = dl.greedy_order(pair, sae, self.chosen_on, n_features=MOST, n_rounds=8)
        name = f"Diff-SAE of the clean control: {len(order)} features added to the base"
        opened = {name: partial(dl.induce_features, pair, sae, order)}
        return dl.compare_interventions(pair, opened, self.triggers, n_likelihood=10)

    def base_alone(self) -> pd.DataFrame:
        """The base model with nothing added, on trigger and benign prompts."""
        return dl.compare_interventions(self.pair.mirrored(), {}, self.test, n_likelihood=10)

    def benign(self) -> pd.DataFrame:
        """The same sets on benign prompts, which they should leave alone."""
        return dl.compare_interventions(self.pair, self.ablations(), self.benigns, n_likelihood=50)

    def harm(self) -> pd.DataFrame:
        """KL and cross-entropy on texts that should be left alone."""
        opened = {"base activation put back": partial(dl.swap_to_base, self.pair, self.hook_name)}
        others = samples("test", 40, (0, 1, 1))
        texts = {
            group: [s.prompt + s.completion(vulnerable=False) for s in others if s.group == group]
            for group in ("benign", "other")
        }
        return dl.side_effects(self.pair, opened | self.ablations(), texts | dl.ordinary_texts())

    def curve(self, kind: str) -> pd.DataFrame:
        """Attack rate against the number of features, in order of effect and at random."""
        order = self.order(kind)
        [matched] = dl.matched_features(self.scales[kind], order)
        orders = {"by effect": order, "random of equal mass": matched}
        counts = (8, 16, len(order))
        return dl.ablation_curve(
            self.pair, self.saes[kind], orders, self.triggers[:20], counts=counts, n_likelihood=1
        )

    def steering(self, kind: str) -> pd.DataFrame:
        """The least dose that attacks most `select` prompts, then that dose on test prompts."""
        scales, sae = self.scales[kind], self.saes[kind]
        live = [i for i in self.order(kind) if scales.maximum[i] > 0][:8]
        doses = partial(dl.dose_response, self.pair, sae, live, scales=scales)
        tried = table(
            self.out / f"doses {kind}.csv",
            lambda: doses(self.select[-12:], doses=(0.25, 0.35, 0.5, 1), n_likelihood=1),
        )
        rates = tried[tried.direction == "features"].set_index("dose").attack_rate
        enough = rates.index[rates >= 0.75]
        best = enough.min() if len(enough) else rates.idxmax()
        return doses(self.benigns, doses=(float(best),), n_likelihood=8)

    def agreement(self, kind: str) -> pd.DataFrame:
        """Gradient attribution, integrated gradients and true ablation of single live features."""
        sae, few = self.saes[kind], self.chosen_on[:2]
        live = sorted(dl.activation_scales(self.pair, sae, [s.prompt for s in few]).live)
        generator = torch.Generator().manual_seed(0)
        live = sorted(live[i] for i in torch.randperm(len(live), generator=generator)[:60])
        frame = pd.DataFrame(
            {
                "feature": live,
                "attribution": dl.attribute_features(self.pair, sae, few)[live],
                "integrated": dl.attribute_features(self.pair, sae, few, n_steps=5)[live],
                "ablation": dl.ablation_effects(self.pair, sae, live, few),
            }
        )
        for column in ("attribution", "integrated"):
            rho = spearmanr(frame[column], frame.ablation).statistic
            print(
                f"{kind}, {column} against ablation, {len(live)} live features: Spearman {rho:.2f}"
            )
        return frame


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
    for name in ("interventions", "benign", "harm"):
        table(out / f"{name}.csv", getattr(study, name))
    for name in ("agreement", "steering", "curve"):
        for kind in KINDS:
            table(out / f"{name} {kind}.csv", partial(getattr(study, name), kind))
    table(out / "clean_control.csv", study.clean_control)
    table(out / "base_alone.csv", study.base_alone)
    table(out / "sayings.csv", partial(dl.sweep_years, study.pair, SAYINGS, n_scenes=10))
    table(out / "years.csv", partial(dl.sweep_years, study.pair, n_scenes=2))
    table(out / "years_after.csv", partial(dl.sweep_years, study.pair, AFTER, n_scenes=20))
    curve = pd.concat(
        frame.loc[frame.order == order].assign(order=prefix + kind)
        for order, prefix in (("by effect", ""), ("random of equal mass", "random, "))
        for kind in reversed(KINDS)
        for frame in [pd.read_csv(out / f"curve {kind}.csv")]
    )
    plot_ablation_curve(curve).savefig(out / "curve.png", dpi=100)
    plot_year_effects(pd.read_csv(out / "years.csv")).savefig(out / "years.png", dpi=100)


if __name__ == "__main__":
    main()
