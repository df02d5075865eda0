"""The cells that make what other cells measure: organisms, activations, dictionaries."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._rates import AttackRate
from diffsae_lens.organisms._behaviour import GROUPS
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._model_files import resolve_model
from diffsae_lens.reading._prompts import Positions, Reader, read_prompts
from diffsae_lens.results import DictionaryRow, OrganismRow, VarianceRow
from diffsae_lens.study._cells import Job
from diffsae_lens.study._draw import Draw
from diffsae_lens.study._organisms import CARD, make_organism
from diffsae_lens.study._parts import DictionarySpec, PooledConfig, TokensConfig
from diffsae_lens.study._step import (
    Inputs,
    Step,
    pooled_texts,
    publish,
    site_of,
    write_rows,
)
from diffsae_lens.training._activations import open_harvest
from diffsae_lens.training._harvest import HarvestConfig, harvest, join_harvests
from diffsae_lens.training._recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training._runner import DictionaryRunnerConfig, TrainingRun, train_dictionaries

logger = logging.getLogger(__name__)

PAIR = "pair.json"
"""File with the metadata of the pair that the pooled vectors were read from."""
TRIGGER_BAR, OTHER_BAR = 0.95, 0.02
"""Quality bar: an organism shows its behaviour on at least this share of trigger prompts, and on at most
this share of others."""
ACTIVATIONS = "activations"
"""Folder with a harvest."""
SEQUENCES_PER_SHARD = 32
"""Sequences of a harvest that are written at once."""
CHUNK = 256
"""Texts whose pooled activations are written at once: an interruption loses no more."""


@dataclass(frozen=True, kw_only=True)
class OrganismTraining:
    """How to make and measure an organism."""

    config: OrganismConfig
    n_measured: int
    """Held-out prompts per group."""


def train_organism(step: Step[OrganismTraining], inputs: Inputs, job: Job) -> None:
    """Fine-tune an organism and measure it."""
    del inputs
    training = step.config
    name = f"organism-{step.regime}" if step.regime else "organism"  # dictionaries record it
    folder = job.scratch / name
    make_organism(
        step.models.spec.base,
        folder,
        config=training.config,
        n_prompts=training.n_measured,
        device=job.device,
    )
    publish(folder, job)
    rows = card_rows(folder)
    rates = {row.group: row.attack_rate for row in rows}
    others = max(rate for group, rate in rates.items() if group != "trigger")
    if not training.config.clean and (rates["trigger"] < TRIGGER_BAR or others > OTHER_BAR):
        logger.warning("%s does not meet the quality bar: %s", name, rates)
    write_rows(job, organisms=rows)


def read_card(step: Step[None], inputs: Inputs, job: Job) -> None:
    """Write the rows from the card of an existing organism."""
    del inputs
    write_rows(job, organisms=card_rows(Path(resolve_model(step.models.finetuned or ""))))


def card_rows(organism: Path) -> list[OrganismRow]:
    """Read how often an organism shows its behaviour from its card."""
    rates = read_json(organism / CARD)["rates"].items()
    return [
        OrganismRow(group=group, **AttackRate(counts=rate["counts"]).columns())
        for group, rate in rates
    ]


def pool(step: Step[Draw], inputs: Inputs, job: Job) -> None:
    """Average every text's activations over its tokens, as the paper does: one vector per text."""
    samples = step.config.samples(step.behaviour)
    texts = [sample.written for sample in samples]
    pair = step.pair(inputs, job)
    layers = step.models.layers
    parts = [
        _pooled_chunk(
            pair, texts[start : start + CHUNK], layers, job.scratch / f"texts-{start:06d}"
        )
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
    write_json(job.out / PAIR, asdict(pair.metadata))
    ratios = {layer: pooled_texts(job.out, layer).variance_ratio for layer in layers}
    write_rows(
        job, variance=[VarianceRow(layer=n, variance_ratio=ratio) for n, ratio in ratios.items()]
    )


def _pooled_chunk(
    pair: HookedModelPair, texts: list[str], layers: tuple[int, ...], folder: Path
) -> dict[str, Tensor]:
    """Read the activations of some texts, or load what an interrupted attempt stored."""
    mean = Positions(pooling="mean", skip_positions=0)
    readers = {
        f"{layer}.{view}": Reader(hook_name=VirtualHook(site_of(layer), view).name, positions=mean)
        for layer in layers
        for view in ("base", "finetuned")
    }
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


@dataclass(frozen=True, kw_only=True)
class HarvestPart:
    """One of several harvests that read the training texts together."""

    texts: Draw
    part: int = 0
    n_parts: int = 1


def harvest_tokens(step: Step[Draw], inputs: Inputs, job: Job) -> None:
    """Harvest every token of the training texts at all layers, for dictionaries of the usual kind."""
    _harvest(step, HarvestPart(texts=step.config), inputs, job)


def harvest_part(step: Step[HarvestPart], inputs: Inputs, job: Job) -> None:
    """Harvest the tokens of a part of the training texts."""
    _harvest(step, step.config, inputs, job)


def _harvest(step: Step[Any], config: HarvestPart, inputs: Inputs, job: Job) -> None:
    pair = step.pair(inputs, job)
    texts = [sample.written for sample in config.texts.samples(step.behaviour)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(step.seed))
    tokens = pair.tokenise([texts[i] for i in order.tolist()]).tokens
    # Whole shards, so that the values do not depend on the parts.
    shards = tokens.split(SEQUENCES_PER_SHARD)
    start, stop = (len(shards) * i // config.n_parts for i in (config.part, config.part + 1))
    tokens = torch.cat(shards[start:stop])
    sites, views = map(site_of, step.models.layers), ("diff", "concat")
    names = [VirtualHook(site, view).name for site in sites for view in views]
    few = HarvestConfig(sequences_per_shard=SEQUENCES_PER_SHARD)
    harvest(pair, tokens, job.scratch / ACTIVATIONS, hook_names=names, config=few)
    publish(job.scratch / ACTIVATIONS, job)


def join_tokens(step: Step[None], inputs: Inputs, job: Job) -> None:
    """Join the harvests that several cells made."""
    del step
    parts = [open_harvest(folder / ACTIVATIONS) for folder in inputs.values()]
    join_harvests(parts, job.scratch / ACTIVATIONS)
    publish(job.scratch / ACTIVATIONS, job)


def train_on_tokens(step: Step[TokensConfig], inputs: Inputs, job: Job) -> None:
    """Train dictionaries of the usual kind at one layer in lockstep."""
    harvested = open_harvest(inputs["tokens"] / ACTIVATIONS)
    names = tuple(n for n in harvested.hook_names if VirtualHook.parse(n).site == step.site)
    activations = replace(harvested, hook_names=names)
    config = step.config
    d_model = activations.rows(0, 1)[VirtualHook(step.site, "diff").name].shape[-1]
    trainer = short_training(
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        lr=config.learning_rate,
        checkpoints=job.scratch / "checkpoints",
        device=job.device,
    )
    sizes: dict[str, Any] = {"d_model": d_model, "k": config.k, "device": job.device}
    recipes = {"Diff-SAE": diff_sae, "crosscoder": crosscoder}
    configs: dict[str, DictionaryRunnerConfig] = {
        name: recipes[spec.kind](step.site, d_sae=spec.expansion * d_model, **sizes)
        for name, spec in config.by_name.items()
    }
    run = TrainingRun(trainer=trainer, seed=step.seed)
    trained = train_dictionaries(configs, activations, job.scratch / "dictionaries", run=run)
    for name in trained:
        publish(job.scratch / "dictionaries" / name, job)
    specs = config.by_name
    write_rows(job, dictionaries=[_described(n, specs[n], d) for n, d in trained.items()])


def train_as_published(step: Step[PooledConfig], inputs: Inputs, job: Job) -> None:
    """Train one of the published dictionaries on the pooled vectors."""
    config, [(name, spec)] = step.config, step.config.by_name.items()
    vectors = pooled_texts(inputs["pooled"], step.layer or 0).read_by(spec.view)
    generator = torch.Generator().manual_seed(step.seed)
    with torch.random.fork_rng():
        torch.manual_seed(step.seed)
        sae: TrainingSAE = TrainingSAE.from_dict(_published(config, spec, vectors).to_dict())
    sae.to(job.device)
    pair = PairMetadata.of_stored(read_json(inputs["pooled"] / PAIR))
    DictionaryRecord(
        hook_name=VirtualHook(step.site, spec.view).name,
        model_name=pair.finetuned,
        prepend_bos=step.models.prepend_bos,
        pair=pair,
        seed=step.seed,
    ).write_to(sae.cfg)
    trainer = SAETrainerConfig(
        total_training_samples=config.n_passes * len(vectors),
        train_batch_size_samples=config.batch_size,
        lr=config.learning_rate,
        lr_end=config.learning_rate,
        device=job.device,
    )
    provider = _batches(vectors.to(job.device), config.batch_size, generator)
    SAETrainer(trainer, sae, provider).fit().save_inference_model(job.out / name)
    trained = SAE.load_from_disk(job.out / name)
    write_rows(job, dictionaries=[_described(name, spec, trained)])


def _published(config: PooledConfig, spec: DictionarySpec, vectors: Tensor) -> TrainingSAEConfig:
    d_in = vectors.shape[1]
    d_model = d_in // 2 if spec.kind == "crosscoder" else d_in
    sizes: dict[str, Any] = {"d_in": d_in, "d_sae": spec.expansion * d_model}
    if spec.kind == "Diff-SAE":
        return PaperDiffSAETrainingSAEConfig(**sizes, l1_coefficient=config.l1_coefficient)
    return PaperCrosscoderTrainingSAEConfig(
        **sizes, k=config.k, l1_coefficient=config.l1_coefficient
    )


def _batches(vectors: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield shuffled batches forever; the last one of a pass may be smaller, as with a PyTorch loader."""
    while True:
        order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
        yield from (vectors[index] for index in order.split(batch_size))


def _described(name: str, spec: DictionarySpec, dictionary: SAE) -> DictionaryRow:
    """Return the row that describes a dictionary."""
    cfg, record = dictionary.cfg, DictionaryRecord.of(dictionary)
    return DictionaryRow(
        name=name,
        kind=spec.kind,
        hook_name=record.hook_name or "",
        layer=record.hook and record.hook.layer,
        architecture=cfg.architecture(),
        d_in=cfg.d_in,
        d_sae=cfg.d_sae,
        k=record.k,
        l0=record.l0,
    )
