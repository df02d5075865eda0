"""What the cells of the paper's study compute; see `study` for how they hang together."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsae_lens import _artifact
from diffsae_lens._artifact import read_json, write_json
from diffsae_lens.dictionaries import (
    PaperCrosscoderTrainingSAEConfig,
    PaperDiffSAETrainingSAEConfig,
)
from diffsae_lens.dictionaries.artifacts import load
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.effects.compare import compare_interventions
from diffsae_lens.interventions.directions import swap_to_base
from diffsae_lens.interventions.features import ablate_features
from diffsae_lens.interventions.side_by_side import Intervene
from diffsae_lens.isolation.labels import LabelledPrompts
from diffsae_lens.isolation.score import evaluate_isolation
from diffsae_lens.measures.resampling import Resampling
from diffsae_lens.organisms.behaviour import GROUPS, Sample, Split, get_behaviour
from diffsae_lens.organisms.finetune import OrganismConfig
from diffsae_lens.pair.hook import VirtualHook
from diffsae_lens.pair.hooked import HookedModelPair
from diffsae_lens.pair.loading import SHIPPED_ORGANISMS_DIR, load_pair
from diffsae_lens.pair.metadata import PairMetadata
from diffsae_lens.pair.tokens import TokenPolicy
from diffsae_lens.pair.views import VIEWS
from diffsae_lens.reading.prompts import Positions, Reader, read_prompts
from diffsae_lens.study.causes import choose_features
from diffsae_lens.study.cells import Job
from diffsae_lens.study.organisms import make_organism
from diffsae_lens.study.pooled_scores import PooledTexts, pooled_scores
from diffsae_lens.training.activations import open_harvest
from diffsae_lens.training.harvest import HarvestConfig, harvest
from diffsae_lens.training.recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training.runner import TrainingRun, train_dictionaries

Config = Mapping[str, Any]
Inputs = Mapping[str, Path]

CHUNK = 256
"""Texts whose pooled activations are written at once, and lost at most by an interruption."""


def organism(config: Config, inputs: Inputs, job: Job) -> None:
    """Copy a shipped organism, or fine-tune one and measure it; its card says how often it attacks."""
    del inputs
    name = config["name"]
    if config["shipped"]:
        shutil.copytree(SHIPPED_ORGANISMS_DIR / config["shipped"], job.out / name)
        return
    make_organism(
        config["base"],
        job.scratch / name,
        config=OrganismConfig(**config["organism"]),
        n_prompts=config["n_prompts"],
        device=job.device,
    )
    _publish(job.scratch / name, job)


def pooled(config: Config, inputs: Inputs, job: Job) -> None:
    """Average every text's activations over its tokens, as the paper does: one vector per text."""
    samples = samples_of(config["texts"])
    texts = [sample.written for sample in samples]
    pair = _pair(config, inputs, job)
    parts = [
        _pooled_chunk(pair, texts[start : start + CHUNK], config["layers"], job, start)
        for start in range(0, len(texts), CHUNK)
    ]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    templates, scenes = [s.template for s in samples], [s.scene for s in samples]
    whole |= {
        "group": torch.tensor([GROUPS.index(s.group) for s in samples]),
        "template": torch.tensor([templates.index(name) for name in templates]),
        "scene": torch.tensor([scenes.index(text) for text in scenes]),
    }
    save_file(whole, job.out / "pooled.safetensors")
    named = {"base": config["base"], "finetuned": _organism(inputs).name}
    write_json(job.out / "pair.json", asdict(pair.metadata) | named)


def _pooled_chunk(
    pair: HookedModelPair, texts: list[str], layers: list[int], job: Job, start: int
) -> dict[str, Tensor]:
    """Read some of the texts, or what an interrupted attempt kept of them."""
    mean = Positions(pooling="mean", skip_positions=0)
    readers = {
        f"{layer}.{view}": Reader(hook_name=VirtualHook(_hook(layer), view).name, positions=mean)
        for layer in layers
        for view in ("base", "finetuned")
    }
    folder = job.scratch / f"texts-{start:06d}"
    _artifact.build(
        folder,
        {
            "texts": _artifact.digest(texts),
            "layers": layers,
            "base": pair.metadata.base_fingerprint,
            "finetuned": pair.metadata.finetuned_fingerprint,
        },
        lambda chunk: save_file(read_prompts(pair, texts, readers), chunk.out / "read.safetensors"),
    )
    return load_file(folder / "read.safetensors")


def tokens(config: Config, inputs: Inputs, job: Job) -> None:
    """Harvest every token of training texts at all layers, for dictionaries of the usual kind."""
    pair = _pair(config, inputs, job)
    samples = samples_of(config["texts"])
    texts = [sample.written for sample in samples]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(config["seed"]))
    tokenised = pair.tokenise([texts[i] for i in order.tolist()]).tokens
    names = [
        VirtualHook(_hook(layer), view).name
        for layer in config["layers"]
        for view in ("diff", "concat")
    ]
    few = HarvestConfig(sequences_per_shard=32)
    harvest(pair, tokenised, job.scratch / "activations", hook_names=names, config=few)
    _publish(job.scratch / "activations", job)


def paper_dictionary(config: Config, inputs: Inputs, job: Job) -> None:
    """Train one of the published dictionaries on the pooled vectors."""
    read = load_file(_input(inputs, "pooled") / "pooled.safetensors")
    vectors, _ = PooledTexts.of_layer(read, config["layer"]).seen_by(VIEWS[config["view"]])
    generator = torch.Generator().manual_seed(config["seed"])
    with torch.random.fork_rng():
        torch.manual_seed(config["seed"])
        sae: TrainingSAE = TrainingSAE.from_dict(_paper_config(config, vectors).to_dict())
    sae.to(job.device)
    trained_on = PairMetadata.of_stored(read_json(_input(inputs, "pooled") / "pair.json"))
    DictionaryRecord(
        hook_name=VirtualHook(_hook(config["layer"]), config["view"]).name,
        model_name=trained_on.finetuned,
        prepend_bos=False,
        pair=trained_on,
        seed=config["seed"],
    ).write_to(sae.cfg)
    trainer = SAETrainerConfig(
        total_training_samples=config["n_passes"] * len(vectors),
        train_batch_size_samples=config["batch_size"],
        lr=config["learning_rate"],
        lr_end=config["learning_rate"],
        device=job.device,
    )
    provider = _batches(vectors.to(job.device), config["batch_size"], generator)
    SAETrainer(trainer, sae, provider).fit().save_inference_model(job.out / "dictionary")


def dictionaries(config: Config, inputs: Inputs, job: Job) -> None:
    """Train dictionaries of the usual kind at one layer in lockstep, on tokens."""
    harvested = open_harvest(_input(inputs, "tokens") / "activations")
    hook_name = _hook(config["layer"])
    names = tuple(n for n in harvested.hook_names if VirtualHook.parse(n).site == hook_name)
    activations = replace(harvested, hook_names=names)
    trainer = short_training(
        n_steps=config["n_steps"],
        batch_size=config["batch_size"],
        lr=config["learning_rate"],
        checkpoints=job.scratch / "checkpoints",
        device=job.device,
    )
    sizes = {"d_model": config["d_model"], "k": config["k"], "device": job.device}
    n = config["expansion"]
    d_sae = n * config["d_model"]
    trained = train_dictionaries(
        {
            f"BatchTopK Diff-SAE {n}x": diff_sae(hook_name, d_sae=d_sae, **sizes),
            # As many parameters as the crosscoder.
            f"BatchTopK Diff-SAE {2 * n}x": diff_sae(hook_name, d_sae=2 * d_sae, **sizes),
            f"BatchTopK crosscoder {n}x": crosscoder(hook_name, d_sae=d_sae, **sizes),
        },
        activations,
        job.scratch / "dictionaries",
        run=TrainingRun(trainer=trainer, seed=config["seed"]),
    )
    for name in trained:
        _publish(job.scratch / "dictionaries" / name, job)


def scores(config: Config, inputs: Inputs, job: Job) -> None:
    """Score a layer's dictionaries by both protocols, beside their floors."""
    pair = _pair(config, inputs, job)
    found = load_dictionaries(inputs, pair)
    table = evaluate_isolation(
        pair,
        found,
        LabelledPrompts.from_samples(
            *(samples_of(config[split]) for split in ("select", "test")), read="decision"
        ),
        resampling=Resampling(n_resamples=config["n_resamples"], seed=config["seed"]),
    )
    save_file({"strict": table.resampled}, job.out / "resampled.safetensors")
    read = load_file(_input(inputs, "pooled") / "pooled.safetensors")
    published = {name: sae for name, sae in found.items() if name in config["published"]}
    write_json(
        job.out / "scores.json",
        {
            "paper": pooled_scores(
                published,
                PooledTexts.of_layer(read, config["layer"]),
                n_resamples=config["n_resamples"],
                seed=config["seed"],
            ),
            "strict": json.loads(table.to_json())["rows"],
        },
    )


def causes(config: Config, inputs: Inputs, job: Job) -> None:
    """Ablate each dictionary's strongest features, beside controls of equal size."""
    pair = _pair(config, inputs, job)
    hook_name = _hook(config["layer"])
    select = samples_of(config["select"])
    found = load_dictionaries(inputs, pair)
    policy = TokenPolicy.any_of(DictionaryRecord.of(sae).tokens for sae in found.values())
    opened: dict[str, Intervene] = {
        "base activation put back": partial(swap_to_base, pair, hook_name, **vars(policy))
    }
    described: dict[str, dict[str, Any]] = {}
    for name, sae in found.items():
        chosen = choose_features(
            pair, sae, select, counts=config["counts"], n_rounds=config["n_rounds"],
            seed=config["seed"],
        )  # fmt: skip
        for n_features in chosen["counts"]:
            for which, label in (("top", "features"), ("random", "random of equal mass")):
                features = chosen[which][str(n_features)]
                title = f"{name}: {n_features} {label} ablated"
                opened[title] = partial(ablate_features, pair, sae, features)
                described[title] = {
                    "dictionary": name, "n_features": n_features, "is_control": which == "random"
                }  # fmt: skip
    frame = compare_interventions(
        pair,
        opened,
        samples_of(config["test"]),
        behaviour=get_behaviour("year-trigger"),
        n_likelihood=config["n_likelihood"],
    )
    none = {"dictionary": None, "n_features": 0, "is_control": False}
    rows = json.loads(frame.to_json(orient="records") or "[]")
    write_json(job.out / "causes.json", [row | described.get(row["name"], none) for row in rows])


def samples_of(drawn: Config) -> list[Sample]:
    """The samples that a cell's config names."""
    split: Split = drawn["split"]
    return get_behaviour("year-trigger").make_samples(
        split,
        n_trigger=drawn["n_trigger"],
        n_benign=drawn["n_benign"],
        n_other=drawn["n_other"],
        seed=drawn["seed"],
        share_scenes=drawn.get("share_scenes", False),
    )


def load_dictionaries(inputs: Inputs, pair: HookedModelPair) -> dict[str, SAE]:
    """Every dictionary in the inputs' folders, by name."""
    found = {}
    for name, folder in sorted(inputs.items()):
        for config in sorted(folder.glob("*/cfg.json")):
            called = config.parent.name
            called = name.rsplit("/", 1)[-1] if called == "dictionary" else called
            if called in found:
                raise ValueError(f"two dictionaries are called {called!r}")
            found[called] = load(config.parent, pair=pair)
    return found


def _publish(folder: Path, job: Job) -> None:
    """Put a finished folder into the result; it stays in scratch until the cell is finished."""
    try:
        shutil.copytree(folder, job.out / folder.name, copy_function=os.link)
    except OSError:  # a file system without hard links
        shutil.copytree(folder, job.out / folder.name, dirs_exist_ok=True)


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _input(inputs: Inputs, name: str) -> Path:
    """The folder of the input whose name ends in this."""
    [found] = [path for cell, path in inputs.items() if cell.rsplit("/", 1)[-1] == name]
    return found


def _pair(config: Config, inputs: Inputs, job: Job) -> HookedModelPair:
    hook_names = [_hook(layer) for layer in config.get("layers") or [config["layer"]]]
    return load_pair(config["base"], _organism(inputs), hook_names=hook_names, device=job.device)


def _organism(inputs: Inputs) -> Path:
    """The organism's folder, whose name the dictionaries carry."""
    [path] = [path for path in _input(inputs, "organism").iterdir() if path.is_dir()]
    return path


def _paper_config(config: Config, vectors: Tensor) -> TrainingSAEConfig:
    d_in = vectors.shape[1]
    d_model = d_in if config["view"] == "diff" else d_in // 2
    sizes = {"d_in": d_in, "d_sae": config["expansion"] * d_model}
    if config["view"] == "diff":
        return PaperDiffSAETrainingSAEConfig(**sizes, l1_coefficient=config["l1_coefficient"])
    return PaperCrosscoderTrainingSAEConfig(
        **sizes, k=config["k"], l1_coefficient=config["l1_coefficient"]
    )


def _batches(vectors: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled batches for ever; a pass ends with a smaller one, as a PyTorch loader's does."""
    while True:
        order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
        yield from (vectors[index] for index in order.split(batch_size))
