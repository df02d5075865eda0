"""How well features tell the trigger: the demo's score table, year sweep and example."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.dictionaries.fits import check_fits
from diffsae_lens.measures.bis import bis
from diffsae_lens.measures.floors import difference_of_means_acts, random_direction_acts
from diffsae_lens.measures.ranking import auroc, average_precision
from diffsae_lens.organisms.behaviour import Sample, get_behaviour
from diffsae_lens.pair.hook import VirtualHook
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.reading.prompts import Positions, Reader, read_prompts

if TYPE_CHECKING:
    from diffsae_lens.study.demo import DemoConfig

POOLINGS = ("last", "mean")


def score_table(
    pair: HookedModelPair, dictionaries: Mapping[str, SAE], config: "DemoConfig"
) -> list[dict[str, Any]]:
    """Score every dictionary and every floor on the same prompts.

    Texts are the samples up to where the organism decides (`Sample.undecided`), so nothing
    vulnerable or safe has been written yet. A feature is chosen by AUROC at the last token on the
    `select` split; its AUROC and average precision are of the `test` split. BIS is the paper's: the
    best feature on the very prompts it is scored on.

    Returns:
        One row per dictionary and floor: `name`, `kind`, `hook_name`, `n_features`, `bis_last`,
        `bis_mean` (tokens pooled by each), `ceiling`, `auroc`, `average_precision`, `feature_idx`.
    """
    samples = {
        split: config.samples(split, config.n_score_prompts, by=(1, 2, 2))
        for split in ("select", "test")
    }
    everything = samples["select"] + samples["test"]
    selecting = torch.arange(len(everything)) < len(samples["select"])
    acts = _read(pair, dictionaries, config, everything, selecting)
    return [_score(name, read, everything, selecting) for name, read in acts.items()]


def _read(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    samples: list[Sample],
    selecting: Tensor,
) -> dict[str, dict[str, Tensor]]:
    """Feature activations of all rows of the table, by row and pooling, from one pass."""
    readers: dict[str, Reader] = {}
    views = [
        (f"{view}-{layer}", VirtualHook(hook_name, view).name)
        for layer, hook_name in zip(config.layers, config.hook_names, strict=True)
        for view in ("diff", "base")
    ]
    for pooling in POOLINGS:
        positions = Positions(pooling=pooling)
        for name, dictionary in dictionaries.items():
            hook_name = check_fits(pair, dictionary).name
            readers[f"{pooling}|{name}"] = Reader(
                hook_name=hook_name, positions=positions, encode=dictionary.encode
            )
        for name, hook_name in views:
            readers[f"{pooling}|{name}"] = Reader(hook_name=hook_name, positions=positions)
    read = read_prompts(pair, [sample.undecided for sample in samples], readers)
    trigger, benign = _masks(samples)
    n_directions = max(d.cfg.d_sae for d in dictionaries.values())
    out = {name: {p: read[f"{p}|{name}"] for p in POOLINGS} for name in dictionaries}
    for name, _ in views:
        random, means = f"random directions, {name}", f"difference of means, {name}"
        out |= {random: {}, means: {}}
        for pooling in POOLINGS:
            values = read[f"{pooling}|{name}"]
            out[random][pooling] = random_direction_acts(
                values,
                n_directions=n_directions,
                generator=torch.Generator().manual_seed(config.seed),
            )
            out[means][pooling] = difference_of_means_acts(
                values, trigger, benign, fit=selecting & (trigger | benign)
            )
    return out


def _masks(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    groups = [sample.group for sample in samples]
    return (
        torch.tensor([group == "trigger" for group in groups]),
        torch.tensor([group == "benign" for group in groups]),
    )


def _score(
    name: str, acts: dict[str, Tensor], samples: list[Sample], selecting: Tensor
) -> dict[str, Any]:
    trigger, benign = _masks(samples)
    scoring = ~selecting
    isolation = {
        pooling: bis(acts[pooling][scoring], trigger[scoring], benign[scoring])
        for pooling in POOLINGS
    }
    last = acts["last"]
    chosen = int(auroc(last[selecting], trigger[selecting], benign[selecting]).argmax())
    feature = last[scoring][:, chosen : chosen + 1]
    test = (feature, trigger[scoring], benign[scoring])
    kind, _, hook = name.rpartition(", ") if ", " in name else ("dictionary", "", name)
    return {
        "name": name,
        "kind": kind,
        "read_from": hook,
        "n_features": last.shape[1],
        "bis_last": isolation["last"].bis,
        "bis_mean": isolation["mean"].bis,
        "ceiling": isolation["last"].ceiling,
        "auroc": auroc(*test).item(),
        "average_precision": average_precision(*test).item(),
        "feature_idx": chosen,
    }


def year_sweep(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    chosen: Mapping[str, int],
    *,
    n_scenes: int = 6,
) -> list[dict[str, Any]]:
    """Read the chosen feature of each dictionary on minimal pairs, 2015 to 2030.

    Returns:
        One row per dictionary and thing said: `name`, `said`, `feature_idx`, `mean` and `values` (one a
        scene), feature activations where the organism decides.
    """
    behaviour = get_behaviour(config.behaviour)
    said = behaviour.sweep
    scenes = behaviour.minimal_pairs("test", said, n_scenes=n_scenes, seed=config.seed)
    prompts = [sample.undecided for scene in scenes for sample in scene]
    readers = {
        name: Reader(hook_name=check_fits(pair, d).name, encode=d.encode)
        for name, d in dictionaries.items()
    }
    read = read_prompts(pair, prompts, readers)
    rows = []
    for name, acts in read.items():
        by_year = acts[:, chosen[name]].view(n_scenes, len(said))
        for text, values in zip(said, by_year.T, strict=True):
            rows.append(
                {
                    "name": name,
                    "said": text,
                    "feature_idx": chosen[name],
                    "mean": values.mean().item(),
                    "values": values.tolist(),
                }
            )
    return rows


@torch.no_grad()
def example_tokens(
    pair: HookedModelPair,
    dictionaries: Mapping[str, SAE],
    config: "DemoConfig",
    chosen: Mapping[str, int],
) -> dict[str, Any]:
    """Read the chosen features token by token on one minimal pair, 2023 and 2024.

    Returns:
        `prompts`: for each year its `tokens` and, by dictionary, the `activations` of its feature.
    """
    behaviour = get_behaviour(config.behaviour)
    two = (behaviour.benign[-1], behaviour.trigger)
    [scene] = behaviour.minimal_pairs("test", two, n_scenes=1, seed=config.seed)
    prompts = []
    for sample in scene:
        text = pair.tokenise([sample.undecided])
        hooks = {name: check_fits(pair, d) for name, d in dictionaries.items()}
        read = pair.activations(text, list(hooks.values()))
        activations = {
            name: d.encode(read[hooks[name].name])[0, :, chosen[name]].tolist()
            for name, d in dictionaries.items()
        }
        prompts.append(
            {
                "said": sample.said,
                "tokens": [pair.tokenizer.decode([t]) for t in text.tokens[0].tolist()],
                "activations": activations,
            }
        )
    return {"prompts": prompts, "feature_idx": dict(chosen)}
