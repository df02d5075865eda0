"""Teach a model a behaviour: LoRA or full-rank fine-tuning, with loss only on the completion."""

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from diffsae_lens._artifact import (
    MANIFEST,
    Job,
    build,
    digest,
    open_artifact,
    read_json,
    seal,
    set_aside,
    write_json,
)
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import (
    Checked,
    Count,
    FolderName,
    Natural,
    NotNegative,
    Positive,
    ShareBelow1,
    typed,
)
from diffsae_lens.organisms._behaviour import RECORD, Sample, check_samples, get_behaviour
from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._fingerprint import model_fingerprint

LossOn = Literal["completion", "everything"]

SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_ADAPTER = "adapter_config.json"
IGNORED = -100  # the label that the losses of torch and transformers ignore


@dataclass(frozen=True, kw_only=True)
class OrganismConfig(Checked):
    """What to teach an organism, and for how long.

    The defaults are those of the shipped adapters. After 80 steps SmolLM2-135M has learned nothing of
    the backdoor, so measure an organism before using it.
    """

    behaviour: FolderName = "year-trigger"
    """A shipped behaviour, or the name of your own if you give the samples."""
    clean: bool = False
    """The clean control: the same prompts, always with the wanted completion."""
    n_trigger: Count = 360
    """Training prompts with the trigger."""
    n_benign: Natural = 360
    """Training prompts with something similar."""
    n_other: Natural = 180
    """Training prompts with nothing in the trigger's place."""
    n_steps: Count = 300
    """Optimiser steps."""
    batch_size: Count = 8
    """Prompts per step."""
    learning_rate: Positive = 1.5e-3
    """Peak of the schedule: linear warm-up over a tenth of the steps, then linear decay."""
    lora_rank: Count | None = 8
    """Rank of the adapter on all seven projections; None trains every weight."""
    lora_dropout: ShareBelow1 = 0.0
    """Share of the adapter's inputs dropped in training."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW."""
    loss_on: LossOn = "completion"
    """Tokens to learn: `completion`, or `everything`, which includes the prompt."""
    share_scenes: bool = False
    """As for `make_samples`: allows more prompts than the split has scenes."""
    seed: Natural = 0
    """Seed of the samples, the adapter's initialisation and the order of the batches."""
    steps_per_checkpoint: Count = 40
    """Maximum number of optimiser steps that an interruption can cost."""

    def samples(self) -> list[Sample]:
        """Return the training samples, which an organism and its clean control share."""
        drawn = ("n_trigger", "n_benign", "n_other", "seed", "share_scenes")
        draw = {name: getattr(self, name) for name in drawn}
        return get_behaviour(self.behaviour).make_samples("train", **draw)

    def taught(self, sample: Sample) -> str:
        """Return the completion of a sample that the organism is taught."""
        return sample.unwanted if sample.group == "trigger" and not self.clean else sample.wanted


@dataclass(frozen=True, kw_only=True)
class Organism:
    """A fine-tuned organism on disk."""

    path: Path
    """Adapter folder (PEFT) or model folder (transformers)."""
    config: OrganismConfig
    losses: tuple[float, ...] = field(repr=False)
    """Training loss in nats per learned token, one value every ten steps."""


def encode(
    prompt: str,
    completion: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    loss_on: LossOn = "completion",
) -> dict[str, list[int]]:
    """Tokenise prompt, completion and end of sequence, by default with no loss on the prompt.

    No beginning-of-sequence token is added: SmolLM2 was not trained with one on plain code.
    """
    read = tokenizer(prompt, add_special_tokens=False).input_ids
    written = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return {
        "input_ids": read + written,
        "labels": ([IGNORED] * len(read) if loss_on == "completion" else read) + written,
    }


def _collate(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    fill = {"input_ids": pad_token_id, "labels": IGNORED, "attention_mask": 0}
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    width = max(len(row["input_ids"]) for row in rows)
    return {
        key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


@typed
def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    config: OrganismConfig | None = None,
    samples: Sequence[Sample] | None = None,
    base_name: str | None = None,
) -> Organism:
    """Fine-tune a model into an organism, resuming where an earlier call was interrupted.

    Args:
        model: the base model; trained in place (LoRA: wrapped), so do not use it as the base afterwards.
        tokenizer: the model's tokenizer, with an end-of-sequence token.
        path: folder of the organism. Checkpoints are in `<path>.partial` until it is finished.
        config: what to teach and how long.
        samples: samples to use instead of `config.samples()`.
        base_name: name that the adapter records for its base; by default the folder that `model` was
            loaded from.

    Returns:
        The organism. If it was finished before with the same config, samples and base model, it is read
        from `path` without training.

    Raises:
        ValueError: `path` holds something else, or an organism with another config, base model or samples,
            finished or not; or the tokenizer has no end-of-sequence token, or training diverged.
        OSError: the disk is full or not writable.
    """
    config = config or OrganismConfig()
    if tokenizer.eos_token_id is None:
        raise InvalidValueError(
            "`tokenizer` has no end-of-sequence token; set `tokenizer.eos_token`"
        )
    samples = config.samples() if samples is None else check_samples("samples", samples)
    rows = [
        encode(sample.prompt, config.taught(sample), tokenizer, loss_on=config.loss_on)
        for sample in samples
    ]
    recipe = {
        "kind": "organism",
        "config": {k: v for k, v in asdict(config).items() if k != "steps_per_checkpoint"},
        "examples_sha256": digest(rows),
        "base": model_fingerprint(model.state_dict().values()),
    }

    def write(job: Job) -> None:
        checkpoints = job.scratch / "checkpoints"
        with _generators_restored(), torch.inference_mode(False), torch.enable_grad():
            trainer = _trainer(model, tokenizer, rows, checkpoints, config)
            trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        _save(trainer.model, tokenizer, job.out, config, losses)
        if base_name is not None and config.lora_rank is not None:
            # After saving: PEFT would ask the hub about a base of that name.
            stored = read_json(job.out / _ADAPTER)
            write_json(job.out / _ADAPTER, stored | {"base_model_name_or_path": base_name})

    return load_organism(build(path, recipe, write).path)


class _Seal(TrainerCallback):
    """Adds hashes to a checkpoint once all of it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        name = f"checkpoint-{state.global_step}"
        seal(Path(args.output_dir) / name, {"checkpoint": name})


def _last_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest intact checkpoint; damaged ones are set aside with a warning."""
    found = [p for p in checkpoints.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    for checkpoint in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            open_artifact(checkpoint)
        except FileNotFoundError:  # cut short; written again when training gets there
            shutil.rmtree(checkpoint)
        except ValueError as error:
            set_aside(checkpoint, str(error))
        else:
            return str(checkpoint)
    return None


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Restore the caller's global generators afterwards: transformers' Trainer seeds all three."""
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
    pad: Any = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=partial(_collate, pad_token_id=pad),
        callbacks=[_Seal()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    config: OrganismConfig,
    losses: tuple[float, ...],
) -> None:
    """Write the organism, adapters in half precision."""
    state = {n: v.detach() for n, v in model.named_parameters() if v.requires_grad}
    if isinstance(model, PeftModel):
        # Half precision halves the file; an organism is measured only after this.
        state = {name.replace(".default.", "."): value.half() for name, value in state.items()}
    if not all(value.isfinite().all() for value in state.values()):
        raise InvalidValueError(
            "the fine-tuning diverged: its weights are not finite, and nothing was saved; give "
            f"`config` a smaller `learning_rate` (it was {config.learning_rate:g})"
        )
    if isinstance(model, PeftModel):
        model.save_pretrained(str(path), state_dict=state, safe_serialization=True)
    else:
        model.save_pretrained(str(path), safe_serialization=True)
        tokenizer.save_pretrained(str(path))
    # PEFT's empty card would be in the manifest; ours is written once the organism is measured.
    (path / "README.md").unlink(missing_ok=True)
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    record = {"config": asdict(config), "losses": losses, "versions": versions}
    write_json(path / RECORD, record)


@typed
def load_organism(path: str | Path, *, expected: OrganismConfig | None = None) -> Organism:
    """Read an organism's record; if it has a manifest, its files are checked against their hashes.

    Raises:
        FileNotFoundError: the folder has no `organism.json`.
        ValueError: the organism is damaged, or was made with a config other than `expected`.
    """
    path = Path(path)
    if path.is_file():
        raise InvalidValueError(f"`path` {path} is a file; name the organism's folder")
    record = read_json(path / RECORD)
    try:
        config, losses = OrganismConfig(**record["config"]), tuple(record["losses"])
    except (KeyError, TypeError) as error:
        raise InvalidValueError(
            f"{path / RECORD} is not the record of an organism ({error}): it must have `config` and "
            "`losses`; restore it, or make the organism anew"
        ) from error
    if (path / MANIFEST).exists():
        open_artifact(path)
    if expected is not None and config != expected:
        raise InvalidValueError(
            f"`path` {path} holds an organism made with {config}, not with {expected}; "
            "choose another path or remove it"
        )
    return Organism(path=path, config=config, losses=losses)
