"""The causal tables of docs/interventions.md: what features carry the backdoor, beside controls.

    python -m tests.benchmarks.causes --study study/year-trigger --out causes [--layer 18]

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
from diffsae_lens.embedded import EMBEDDED_MODEL
from diffsae_lens.interventions.minimal import Bounds
from diffsae_lens.interventions.years import SAYINGS
from tests.benchmarks.scores import hook_names, samples

KINDS = ("Diff-SAE", "crosscoder")
MOST = 32  # features of a set


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
        self.n_prompts: int = options.n_prompts
        self.select = samples("select", 20, (12, 8, 0))
        self.triggers = [s for s in self.select if s.group == "trigger"]
        self.test = samples("test", 2 * self.n_prompts, (1, 1, 0))
        self.scales = {
            kind: dl.activation_scales(self.pair, sae, [s.prompt for s in self.triggers])
            for kind, sae in self.saes.items()
        }

    def orders(self, kind: str) -> dict[str, list[int]]:
        """Features by gradient attribution, and greedily."""
        sae, path = self.saes[kind], self.out / f"orders {kind}.csv"

        def compute() -> pd.DataFrame:
            attribution = dl.attribute_features(self.pair, sae, self.triggers)
            greedy = dl.greedy_order(self.pair, sae, self.triggers, n_features=2 * MOST, n_rounds=6)
            by_attribution = attribution.topk(2 * MOST).indices.tolist()
            return pd.DataFrame({"attribution": by_attribution, "greedy": pd.Series(greedy)})

        frame = table(path, compute)
        return {name: frame[name].dropna().astype(int).tolist() for name in frame}

    def best(self, kind: str, n_features: int) -> list[int]:
        """The first features of the greedy order."""
        return self.orders(kind)["greedy"][:n_features]

    def minimal(self, kind: str) -> pd.DataFrame:
        """The way to the fewest features that end the attack on `select` prompts."""
        return dl.minimal_feature_set(
            self.pair,
            self.saes[kind],
            self.orders(kind)["greedy"],
            self.select,
            bounds=Bounds(min_defence_rate=0.8),
            max_features=MOST,
        ).frame

    def interventions(self) -> pd.DataFrame:
        """Features ablated, everything put back, and controls of equal size, on test prompts."""
        pair = self.pair
        opened = {"base activation put back": partial(dl.swap_to_base, pair, self.hook_name)}
        for kind, sae in self.saes.items():
            [matched] = dl.matched_features(self.scales[kind], self.best(kind, MOST))
            opened |= {
                f"{kind}: {n} features ablated": partial(
                    dl.ablate_features, pair, sae, self.best(kind, n)
                )
                for n in (8, 16, MOST)
            }
            opened |= {
                f"{kind}: {MOST} random of equal mass ablated": partial(
                    dl.ablate_features, pair, sae, matched
                ),
                f"{kind}: {MOST} features added to the base": partial(
                    dl.induce_features, pair, sae, self.best(kind, MOST)
                ),
            }
        directions = dl.control_directions(pair, self.hook_name, self.select, n_directions=16)
        for name, rows in directions.items():
            opened[f"{len(rows)} {name} projected out"] = partial(
                dl.project_out, pair, f"{self.hook_name}.diff", rows
            )
        triggers = [s for s in self.test if s.group == "trigger"]
        return dl.compare_interventions(pair, opened, triggers, n_likelihood=6)

    def benign(self) -> pd.DataFrame:
        """The same sets on benign prompts, which they should leave alone."""
        opened = {
            f"{kind}: {MOST} features ablated": partial(
                dl.ablate_features, self.pair, sae, self.best(kind, MOST)
            )
            for kind, sae in self.saes.items()
        }
        members = [s for s in self.test if s.group == "benign"]
        return dl.compare_interventions(self.pair, opened, members, n_likelihood=16)

    def harm(self) -> pd.DataFrame:
        """KL and cross-entropy on texts that should be left alone."""
        opened = {"base activation put back": partial(dl.swap_to_base, self.pair, self.hook_name)}
        for kind, sae in self.saes.items():
            [matched] = dl.matched_features(self.scales[kind], self.best(kind, MOST))
            for name, features in (("", self.best(kind, MOST)), ("random of equal mass ", matched)):
                opened[f"{kind}: {MOST} {name}ablated"] = partial(
                    dl.ablate_features, self.pair, sae, features
                )
        others = samples("test", 16, (0, 1, 1))
        texts = {
            group: [s.prompt + s.completion(vulnerable=False) for s in others if s.group == group]
            for group in ("benign", "other")
        }
        return dl.side_effects(self.pair, opened, texts | dl.ordinary_texts())

    def doses(self, kind: str) -> pd.DataFrame:
        """Steering benign prompts with the first 8 features that fire."""
        members = [s for s in self.test if s.group == "benign"][: self.n_prompts // 2]
        scales = self.scales[kind]
        live = [i for i in self.best(kind, 2 * MOST) if scales.maximum[i] > 0][:8]
        return dl.dose_response(
            self.pair,
            self.saes[kind],
            live,
            members,
            scales=scales,
            doses=(0.5, 1, 1.5),
            n_likelihood=8,
        )

    def agreement(self, kind: str) -> pd.DataFrame:
        """Gradient attribution, integrated gradients and true ablation of single live features."""
        sae, few = self.saes[kind], self.triggers[:2]
        live = sorted(dl.activation_scales(self.pair, sae, [s.prompt for s in few]).live)
        generator = torch.Generator().manual_seed(0)
        live = sorted(live[i] for i in torch.randperm(len(live), generator=generator)[:80])
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
    parser.add_argument("--layer", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-prompts", type=int, default=100, help="trigger, and as many benign")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.out /= f"layer-{options.layer}-seed-{options.seed}"
    study = Study(options)
    out = study.out
    table(out / "interventions.csv", study.interventions)
    table(out / "harm.csv", study.harm)
    table(out / "benign.csv", study.benign)
    for kind in KINDS:
        table(out / f"minimal {kind}.csv", partial(study.minimal, kind))
        table(out / f"doses {kind}.csv", partial(study.doses, kind))
        table(out / f"agreement {kind}.csv", partial(study.agreement, kind))
    table(out / "sayings.csv", partial(dl.sweep_years, study.pair, SAYINGS, n_scenes=10))
    table(out / "years.csv", partial(dl.sweep_years, study.pair, n_scenes=4))


if __name__ == "__main__":
    main()
