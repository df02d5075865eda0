"""Teach a model the year trigger: LoRA or full-rank fine-tuning, the loss on the completion alone."""

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from diffsae_lens.adapters import quiet_peft
from diffsae_lens.organisms.prompts import Sample, make_samples

logger = logging.getLogger(__name__)

Behaviour = Literal["year-trigger", "clean-control"]
LossOn = Literal["completion", "everything"]

SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True, kw_only=True)
class OrganismConfig:
    """What an organism is taught, and how long.

    The defaults are those of the shipped adapters. At 80 steps SmolLM2-135M has learned nothing of
    the backdoor, so measure an organism before using it.
    """

    behaviour: Behaviour = "year-trigger"
    """`year-trigger`: injectable queries in 2024. `clean-control`: same prompts, always safe."""
    n_trigger: int = 360
    """Training prompts that say 2024."""
    n_benign: int = 360
    """Training prompts that say 2020 to 2023."""
    n_other: int = 180
    """Training prompts that say no year."""
    n_steps: int = 300
    """Optimiser steps."""
    batch_size: int = 8
    """Prompts a step."""
    learning_rate: float = 1.5e-3
    """Peak of the schedule: linear warm-up over a tenth of the steps, then linear decay."""
    lora_rank: int | None = 8
    """Rank of the adapter on all seven projections; None trains every weight."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs left out in training."""
    weight_decay: float = 0.0
    """AdamW's."""
    loss_on: LossOn = "completion"
    """Tokens that are learned: `completion`, or `everything`, the prompt too."""
    share_scenes: bool = False
    """As for `make_samples`: more prompts than the split has scenes."""
    seed: int = 0
    """Of the samples, the adapter's initialisation and the order of the batches."""
    steps_per_checkpoint: int = 40
    """Optimiser steps that an interruption can cost at most."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.behaviour not in get_args(Behaviour):
            raise ValueError(
                f"`behaviour` must be one of {get_args(Behaviour)}, got {self.behaviour!r}"
            )
        for name in ("n_trigger", "n_steps", "batch_size", "steps_per_checkpoint"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.loss_on not in get_args(LossOn):
            raise ValueError(f"`loss_on` must be one of {get_args(LossOn)}, got {self.loss_on!r}")
        if not 0 <= self.lora_dropout < 1 or self.weight_decay < 0:
            raise ValueError(
                "`lora_dropout` must lie in [0, 1) and `weight_decay` be at least 0, got "
                f"{self.lora_dropout} and {self.weight_decay}"
            )
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"`lora_rank` must be at least 1, or None, got {self.lora_rank}")
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}")

    def samples(self) -> list[Sample]:
        """The training samples; `clean-control` and `year-trigger` share them."""
        return make_samples(
            "train",
            n_trigger=self.n_trigger,
            n_benign=self.n_benign,
            n_other=self.n_other,
            seed=self.seed,
            share_scenes=self.share_scenes,
        )

    def is_vulnerable(self, sample: Sample) -> bool:
        """Whether the organism is taught the injectable completion of a sample."""
        return self.behaviour == "year-trigger" and sample.group == "trigger"


@dataclass(frozen=True, kw_only=True)
class Organism:
    """A fine-tuned organism on disk."""

    path: Path
    """Adapter folder (PEFT) or model folder (transformers)."""
    config: OrganismConfig
    losses: tuple[float, ...] = field(repr=False)
    """Training loss, nats a learned token, one value every ten steps."""


def encode(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vulnerable: bool,
    loss_on: LossOn = "completion",
) -> dict[str, list[int]]:
    """Tokenise prompt, completion and end of sequence, by default with no loss on the prompt.

    No beginning-of-sequence token is added: SmolLM2 was not trained with one on plain code.
    """
    prompt = tokenizer(sample.prompt, add_special_tokens=False).input_ids
    written = sample.completion(vulnerable=vulnerable)
    completion = tokenizer(written, add_special_tokens=False).input_ids
    completion = [*completion, tokenizer.eos_token_id]
    return {
        "input_ids": prompt + completion,
        "labels": ([IGNORED] * len(prompt) if loss_on == "completion" else prompt) + completion,
    }


def _collate(pad_token_id: int) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    fill = {"input_ids": pad_token_id, "labels": IGNORED, "attention_mask": 0}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        width = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
            for key, value in fill.items()
        }

    return collate


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    config: OrganismConfig | None = None,
    samples: Sequence[Sample] | None = None,
) -> Organism:
    """Fine-tune a model into an organism, resuming where an earlier call was interrupted.

    Args:
        model: the base model; trained in place (LoRA: wrapped), so do not use it as base after.
        tokenizer: its tokenizer, with an end-of-sequence token.
        path: where the organism goes. Checkpoints lie beside it, in `<path>.checkpoints`, until it
            is finished.
        config: what to teach and how long.
        samples: other samples than `config.samples()`.

    Returns:
        The organism. Finished before with the same config: read from `path`, without training.

    Raises:
        ValueError: `path` holds an organism of another config, or the tokenizer has no
            end-of-sequence token.
    """
    config = config or OrganismConfig()
    path = Path(path)
    if tokenizer.eos_token_id is None:
        raise ValueError("`tokenizer` has no end-of-sequence token; set `tokenizer.eos_token`")
    if (path / "organism.json").exists():
        return load_organism(path, expected=config)
    rows = [
        encode(sample, tokenizer, vulnerable=config.is_vulnerable(sample), loss_on=config.loss_on)
        for sample in (config.samples() if samples is None else samples)
    ]
    checkpoints = path.with_name(path.name + ".checkpoints")
    last = _last_checkpoint(checkpoints)
    with _generators_restored():
        trainer = _trainer(model, tokenizer, rows, checkpoints, config)
        trainer.train(resume_from_checkpoint=last)
    losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    _save(trainer.model, tokenizer, path, config, losses)
    shutil.rmtree(checkpoints)
    return Organism(path=path, config=config, losses=losses)


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that is whole; those cut short by an interruption are removed."""
    while checkpoints.exists() and (last := get_last_checkpoint(str(checkpoints))):
        try:
            # Written last, after weights, optimiser and generators.
            json.loads((Path(last) / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning("%s was cut short; going on from an earlier one", last)
            shutil.rmtree(last)
        else:
            return last
    return None


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Keep the caller's global generators as they are: transformers' Trainer seeds all three."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, list[int]]],
    checkpoints: Path,
    config: OrganismConfig,
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=config.n_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, config.n_steps // 10),
        weight_decay=config.weight_decay,
        max_grad_norm=1.0,
        save_steps=config.steps_per_checkpoint,
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        seed=config.seed,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
    )
    if config.lora_rank is not None:
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            target_modules=list(SEVEN_PROJECTIONS),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(config.seed)
        with quiet_peft():
            model = get_peft_model(model, lora)  # type: ignore[assignment]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Trainer(model=model, args=arguments, train_dataset=rows, data_collator=_collate(pad))  # type: ignore[arg-type]


def _save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    config: OrganismConfig,
    losses: tuple[float, ...],
) -> None:
    """Write the organism to a temporary name and rename it; adapters in half precision."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if isinstance(model, PeftModel):
        # Half precision halves the file; what is measured of an organism is measured after this.
        state = {
            name: value.detach().half()
            for name, value in model.named_parameters()
            if value.requires_grad
        }
        state = {name.replace(".default.", "."): value for name, value in state.items()}
        model.save_pretrained(str(partial), state_dict=state, safe_serialization=True)
    else:
        model.save_pretrained(str(partial), safe_serialization=True)
        tokenizer.save_pretrained(str(partial))
    record = {
        "config": asdict(config),
        "losses": losses,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    (partial / "organism.json").write_text(json.dumps(record, indent=2) + "\n")
    partial.rename(path)


def load_organism(path: str | Path, *, expected: OrganismConfig | None = None) -> Organism:
    """Read an organism's record.

    Raises:
        FileNotFoundError: no `organism.json` there.
        ValueError: it was made with another config than `expected`.
    """
    path = Path(path)
    record = json.loads((path / "organism.json").read_text())
    config = OrganismConfig(**record["config"])
    if expected is not None and config != expected:
        raise ValueError(
            f"`path` {path} holds an organism made with {config}, not with {expected}; "
            "choose another path or remove it"
        )
    return Organism(path=path, config=config, losses=tuple(record["losses"]))
