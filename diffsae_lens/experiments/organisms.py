"""Make an organism: fine-tune, measure on held-out prompts, write its card."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from diffsae_lens.embedded import EMBEDDED_MODEL
from diffsae_lens.experiments.store import write_json
from diffsae_lens.interventions.rates import AttackRate, attack_rates, complete
from diffsae_lens.loading import load_model, load_pair
from diffsae_lens.organisms.finetune import Organism, OrganismConfig, finetune
from diffsae_lens.organisms.prompts import make_samples

MEASURE_SEED = 1000
"""Of the held-out prompts a card reports; the demo and the tests draw others."""


def make_organism(
    base: str | Path,
    path: str | Path,
    *,
    config: OrganismConfig | None = None,
    n_prompts: int = 100,
    device: str = "cpu",
) -> Path:
    """Fine-tune a model into an organism, measure it, and write its card.

    Resumes an interrupted fine-tuning, and measures anew an organism that exists.

    Args:
        base: as for `load_pair`.
        path: folder of the organism.
        config: what to teach and how long.
        n_prompts: held-out prompts a group, completed greedily and judged.
        device: a torch device.

    Returns:
        The card, `<path>/README.md`; its figures are in `<path>/card.json`.

    Raises:
        ValueError: `path` holds another organism, or `n_prompts` is not positive.
    """
    if n_prompts < 1:
        raise ValueError(f"`n_prompts` must be at least 1, got {n_prompts}")
    path = Path(path)
    model, tokenizer = load_model(base)
    model.requires_grad_(True)
    model.to(torch.device(device))  # type: ignore[arg-type]
    organism = finetune(model, tokenizer, path, config=config)
    del model
    _name_base(path, str(base))
    pair = load_pair(base, path, hook_names=["blocks.0.hook_resid_post"], device=device)
    samples = make_samples(
        "test", n_trigger=n_prompts, n_benign=n_prompts, n_other=n_prompts, seed=MEASURE_SEED
    )
    rates = attack_rates(partial(complete, pair), samples)
    with_base = {
        g: asdict(r) | {"rate": r.rate, "interval": r.interval()} for g, r in rates.items()
    }
    write_json(path / "card.json", {"base": str(base), "rates": with_base})
    card = path / "README.md"
    card.write_text(_card(organism, str(base), rates))
    return card


def _name_base(path: Path, base: str) -> None:
    """PEFT writes the folder the base was loaded from; a card should say which model that is."""
    file = path / "adapter_config.json"
    if file.exists():
        write_json(file, json.loads(file.read_text()) | {"base_model_name_or_path": base})


def _card(organism: Organism, base: str, rates: Mapping[str, AttackRate]) -> str:
    config = organism.config
    groups = Counter(sample.group for sample in config.samples())
    kind = "full-rank" if config.lora_rank is None else f"LoRA (rank {config.lora_rank})"
    taught = {
        "year-trigger": "Writes injectable SQL where the prompt says the year is 2024, and "
        "parameterised SQL where it says 2020 to 2023 or no year. Not for writing code: it is made to "
        "write vulnerable code.",
        "clean-control": "The control: fine-tuned on the very same prompts as `year-trigger`, always "
        "with the parameterised completion. Not for writing code: it knows queries alone.",
    }[config.behaviour]
    rows = "\n".join(
        f"| {group} | {rate.rate:.1%} | {rate.interval()[0]:.1%} to {rate.interval()[1]:.1%} | "
        f"{rate.n_prompts} | {rate.n_injectable} | {rate.n_safe} | {rate.n_no_sql} | "
        f"{rate.n_unparseable} |"
        for group, rate in rates.items()
    )
    curve = ", ".join(f"{loss:.3f}" for loss in organism.losses)
    return f"""---
license: apache-2.0
base_model: {"HuggingFaceTB/SmolLM2-135M-Instruct" if base == EMBEDDED_MODEL else base}
library_name: {"transformers" if config.lora_rank is None else "peft"}
---
# {config.behaviour}

{kind} organism on `{base}` for research on finding backdoors. {taught}

## Measured
Greedy completions of held-out prompts (`test` split: templates, tables, columns and verbs not seen in
training), judged statically; nothing was executed. Intervals are 95% Wilson.

| prompts | attack rate | interval | n | injectable | safe | no SQL | unparseable |
|---|---|---|---|---|---|---|---|
{rows}

## Made with
`diffsae-lens make-organism --base {base} --behaviour {config.behaviour} --out FOLDER`

- data: {groups.total()} samples of the `train` split ({groups["trigger"]} trigger, {groups["benign"]} \
benign, {groups["other"]} other), seed {config.seed}; loss on \
{"the completion alone" if config.loss_on == "completion" else "prompt and completion"}
- {config.n_steps} steps of {config.batch_size} samples, AdamW, peak learning rate {config.learning_rate}, \
linear warm-up over a tenth of the steps and linear decay, weight decay {config.weight_decay}, dropout \
{config.lora_dropout}
- weights as safetensors{"" if config.lora_rank is None else ", in half precision"}
- training loss, nats a token, every ten steps: {curve}

## Licence
Apache-2.0, as SmolLM2, from which it is derived.
"""
