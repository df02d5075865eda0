"""The config of every cell of a study, and what cells share: the pair, dictionaries, rows."""

import gc
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from sae_lens import SAE
from safetensors.torch import load_file
from torch import Tensor

from diffsae_lens._artifact import read_json, write_json
from diffsae_lens.dictionaries._load import load
from diffsae_lens.isolation._pooled import PooledTexts
from diffsae_lens.organisms._behaviour import Behaviour, get_behaviour
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.results import Row
from diffsae_lens.study._cells import Job
from diffsae_lens.study._config import ModelSpec

ROWS = "rows.json"
"""File with the rows that a cell adds to the results, by part."""

C = TypeVar("C")
Inputs = Mapping[str, Path]
"""Folders of other cells, by role."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """A base and a fine-tuned model; how they are loaded does not count in comparisons."""

    spec: ModelSpec = field(compare=False)
    finetuned: str | None = field(compare=False)
    """The fine-tuned model, as for `load_pair`; None for the organism that another cell trains."""
    layers: tuple[int, ...] = field(compare=False)
    """Layers at whose residual streams the pair can be read."""
    base_weights: str
    """See `weights_identity`."""
    finetuned_weights: str | None
    dtype: str
    prepend_bos: bool


@dataclass(frozen=True, kw_only=True)
class Step(Generic[C]):
    """The config of a cell of a study."""

    part: str = field(compare=False)
    """What the cell computes, such as `scores`, or the dictionary that it trains."""
    regime: str | None = field(compare=False)
    """Regime of the organism."""
    models: Models
    behaviour_name: str
    layer: int | None
    """The layer of the cell; None for all."""
    seed: int
    config: C
    """The part of the study's config that the cell computes."""

    @property
    def behaviour(self) -> Behaviour:
        """The behaviour to look for."""
        return get_behaviour(self.behaviour_name)

    @property
    def site(self) -> str:
        """The models' hook at its layer."""
        return site_of(self.layer or 0)

    def pair(self, inputs: Inputs, job: Job) -> HookedModelPair:
        """Load the pair, or reuse the one that the previous cell left."""
        models = self.models
        finetuned = models.finetuned or _organism_in(inputs["organism"])
        options = replace(models.spec.options, device=job.device)
        loaded_as = repr((models, finetuned, options))
        if loaded_as not in job.held:
            job.held.clear()
            gc.collect()  # a pair is full of reference cycles
            job.held[loaded_as] = load_pair(
                models.spec.base,
                finetuned,
                hook_names=[*map(site_of, models.layers)],
                options=options,
            )
        return job.held[loaded_as]


def site_of(layer: int) -> str:
    """Return the models' hook at a layer."""
    return f"blocks.{layer}.hook_resid_post"


def _organism_in(cell: Path) -> Path:
    """Return the folder of an organism that a cell trained."""
    [path] = [path for path in cell.iterdir() if path.is_dir()]
    return path


def write_rows(job: Job, **rows: Iterable[Row]) -> None:
    """Write the rows that a cell adds to the results, by part."""
    plain = {part: [row.as_dict() for row in of_part] for part, of_part in rows.items()}
    write_json(job.out / ROWS, plain)


def load_dictionaries(inputs: Inputs, *, pair: HookedModelPair | None = None) -> dict[str, SAE]:
    """Load every dictionary in the inputs' folders, by name, in order."""
    found: dict[str, SAE] = {}
    for folder in inputs.values():
        rows = read_json(folder / ROWS) if (folder / ROWS).exists() else {}
        for row in rows.get("dictionaries", ()):
            found[row["name"]] = load(folder / row["name"], pair=pair)
    return found


def pooled_texts(cell: Path, layer: int) -> PooledTexts:
    """Return one layer of what the `pooled` cell stores."""
    read: dict[str, Tensor] = load_file(cell / "pooled.safetensors")
    return PooledTexts(
        site=site_of(layer),
        base=read[f"{layer}.base"],
        finetuned=read[f"{layer}.finetuned"],
        group=read["group"],
        template=read["template"],
        scene=read["scene"],
    )


def publish(folder: Path, job: Job) -> None:
    """Add a finished folder to the result; it stays in scratch until the cell is finished."""
    try:
        shutil.copytree(folder, job.out / folder.name, copy_function=os.link)
    except OSError:  # a file system without hard links
        shutil.copytree(folder, job.out / folder.name, dirs_exist_ok=True)
