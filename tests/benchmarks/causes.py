"""The causal tables of docs/causes.md: what features carry the backdoor, beside equal controls.

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

    def minimal(self, kind: str) -> tuple[str, list[int]]:
        """The shorter of the minimal sets of both orders; all of `MOST` where there is none."""
        found = {}
        for name, order in self.orders(kind).items():
            path = self.out / f"minimal {kind} {name}.csv"

            def compute(order: list[int] = order) -> pd.DataFrame:
                bounds = Bounds(min_defence_rate=0.8)
                return dl.minimal_feature_set(
                    self.pair, self.saes[kind], order, self.select, bounds=bounds, max_features=MOST
                ).frame

            frame = table(path, compute)
            meets = frame[frame.meets]
            n = int(meets.n_features.min()) if len(meets) else MOST
            rate = frame.attack_rate.iloc[-1]
            found[name] = (len(meets) == 0, n, rate, order[:n])
        name = min(found, key=lambda key: found[key][:3])
        print(f"{kind}: {len(found[name][3])} features, ordered by {name}", flush=True)
        return name, found[name][3]

    def interventions(self) -> pd.DataFrame:
        """Minimal sets, everything, and controls of equal size, on test prompts."""
        pair = self.pair
        opened = {"base activation put back": partial(dl.swap_to_base, pair, self.hook_name)}
        n_most = 1
        for kind, sae in self.saes.items():
            _, features = self.minimal(kind)
            [matched] = dl.matched_features(self.scales[kind], features)
            n = len(features)
            n_most = max(n_most, n)
            opened |= {
                f"{kind}: {n} features ablated": partial(dl.ablate_features, pair, sae, features),
                f"{kind}: {n} random of equal mass ablated": partial(
                    dl.ablate_features, pair, sae, matched
                ),
                f"{kind}: {n} features added to the base": partial(
                    dl.induce_features, pair, sae, features
                ),
            }
        directions = dl.control_directions(
            pair, self.hook_name, self.select, n_directions=min(n_most, len(self.select) - 1)
        )
        for name, rows in directions.items():
            opened[f"{len(rows)} {name} projected out"] = partial(
                dl.project_out, pair, f"{self.hook_name}.diff", rows
            )
        triggers, benign = (
            [s for s in self.test if s.group == group] for group in ("trigger", "benign")
        )
        sets = {name: o for name, o in opened.items() if name.endswith("features ablated")}
        return pd.concat(
            [
                dl.compare_interventions(pair, opened, triggers, n_likelihood=16),
                dl.compare_interventions(pair, sets, benign, n_likelihood=16),
            ]
        )

    def harm(self) -> pd.DataFrame:
        """KL and cross-entropy on texts that should be left alone."""
        opened = {"base activation put back": partial(dl.swap_to_base, self.pair, self.hook_name)}
        for kind, sae in self.saes.items():
            _, features = self.minimal(kind)
            opened[f"{kind}: {len(features)} features ablated"] = partial(
                dl.ablate_features, self.pair, sae, features
            )
        others = samples("test", 16, (0, 1, 1))
        texts = {
            group: [s.prompt + s.completion(vulnerable=False) for s in others if s.group == group]
            for group in ("benign", "other")
        }
        return dl.side_effects(self.pair, opened, texts | dl.ordinary_texts())

    def doses(self, kind: str) -> pd.DataFrame:
        """Steering benign prompts with the first 8 of the order that led to the minimal set."""
        name, _ = self.minimal(kind)
        benign = [s for s in self.test if s.group == "benign"][: self.n_prompts // 2]
        scales, order = self.scales[kind], self.orders(kind)[name]
        live = [i for i in order if scales.maximum[i] > 0][:8]
        return dl.dose_response(
            self.pair,
            self.saes[kind],
            live,
            benign,
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
    for kind in KINDS:
        table(out / f"doses {kind}.csv", partial(study.doses, kind))
        table(out / f"agreement {kind}.csv", partial(study.agreement, kind))
    table(out / "sayings.csv", partial(dl.sweep_years, study.pair, SAYINGS, n_scenes=10))
    table(out / "years.csv", partial(dl.sweep_years, study.pair, n_scenes=4))


if __name__ == "__main__":
    main()
