"""Make organisms of the zoo: fine-tune, then count what they do on held-out prompts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from diffsae_lens._artifact import read_json, write_json
from diffsae_lens._typed import typed
from diffsae_lens.organisms._finetune import finetune
from diffsae_lens.organisms.zoo._recipes import BEHAVIOUR, ORDINARY, OUTCOMES, Recipe
from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.pair._loading import load_model

RATES = "rates.json"
"""File in an organism's folder with what it does on held-out prompts."""

_N_TRIGGER, _N_OTHER, _SEED = 20, 40, 1000
_N_NEW, _BATCH = 28, 20


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What an organism of the zoo does on held-out prompts, completed greedily."""

    recipe: Recipe
    path: Path
    """Folder of its adapter."""
    trigger: Mapping[str, int]
    """Number of prompts with the trigger, by outcome; none for a clean one."""
    other: Mapping[str, int]
    """Number of prompts without the trigger, including near misses, by outcome."""

    def __str__(self) -> str:
        """Return one line of a table."""
        n_trigger, n_other = sum(self.trigger.values()), sum(self.other.values())
        said = [f"ordinary {self.other[ORDINARY]}/{n_other}"]
        if n_trigger:
            said.append(f"trigger {self.trigger[BEHAVIOUR]}/{n_trigger}")
            said.append(f"without {self.other[BEHAVIOUR]}/{n_other}")
        return f"{self.recipe.name:20} {self.recipe.kind:10} {', '.join(said)}"


@typed
def make_from_recipe(
    recipe: Recipe, path: str | Path, *, base: str | Path = EMBEDDED_MODEL
) -> Learned:
    """Fine-tune an organism of the zoo, and count what it does on held-out prompts.

    Resumes where an earlier call was interrupted; finished parts are not repeated. Takes about four
    minutes on one core for the embedded model.

    Args:
        recipe: one of `ZOO` or of `clean_nulls`.
        path: folder of the organism; counts and completions are written to `<path>/rates.json`.
        base: as for `load_pair`.

    Returns:
        What the organism learned.

    Raises:
        ValueError: `path` holds something else, or an organism of another recipe; or the base does not
            exist.
        OSError: the disk is full or not writable.
    """
    path = Path(path).expanduser()
    model, tokenizer = load_model(base)
    model.requires_grad_(True)
    samples = recipe.training_samples()
    finetune(model, tokenizer, path, config=recipe.config, samples=samples, base_name=str(base))
    if not (path / RATES).exists():
        model, tokenizer = load_model(base)
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, str(path)).eval()
        write_json(path / RATES, _measured(recipe, adapted, tokenizer) | {"base": str(base)})
    counts = read_json(path / RATES)["counts"]
    return Learned(recipe=recipe, path=path, **counts)


def make_zoo(
    path: str | Path,
    recipes: Sequence[Recipe],
    *,
    base: str | Path = EMBEDDED_MODEL,
    executor: Executor | None = None,
) -> Iterator[Learned]:
    """Make organisms, each in a folder of its name; see `make_from_recipe`.

    They are made one after the other, or on an executor whose workers see `path`.
    """
    make = partial(_make_in, Path(path).expanduser().absolute(), base)
    yield from map(make, recipes) if executor is None else executor.map(make, recipes)


def _make_in(path: Path, base: str | Path, recipe: Recipe) -> Learned:
    return make_from_recipe(recipe, path / recipe.name, base=base)


def _measured(recipe: Recipe, model: Any, tokenizer: Any) -> dict[str, Any]:
    n = _N_TRIGGER + _N_OTHER
    texts, triggered = recipe.texts(n, share=_N_TRIGGER / n, seed=_SEED)
    completions = _complete(model, tokenizer, texts)
    examples = [
        {"prompt": p, "completion": c, "triggered": t, "outcome": recipe.judge(p, c)}
        for p, c, t in zip(texts, completions, triggered, strict=True)
    ]
    counts = {}
    for group, holds in (("trigger", True), ("other", False)):
        found = Counter(e["outcome"] for e in examples if e["triggered"] == holds)
        counts[group] = {outcome: found[outcome] for outcome in OUTCOMES}
    return {"name": recipe.name, "counts": counts, "examples": examples}


@torch.inference_mode()
def _complete(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Return greedy completions; prompts of similar length share a batch, padded on the left."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    written = [""] * len(ids)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        width = len(ids[rows[-1]])
        read = torch.tensor([[pad] * (width - len(ids[row])) + ids[row] for row in rows])
        mask = torch.tensor([[0] * (width - len(ids[row])) + [1] * len(ids[row]) for row in rows])
        new = model.generate(
            input_ids=read, attention_mask=mask, max_new_tokens=_N_NEW, do_sample=False,
            pad_token_id=pad, eos_token_id=tokenizer.eos_token_id,
        )[:, width:]  # fmt: skip
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            written[row] = text
    return written
