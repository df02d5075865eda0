"""Checks before anything is loaded or written: folders, prompts, sizes, memory."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig

from diffsae_lens._artifact import digest, sha256
from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.organisms._behaviour import get_behaviour
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.pair._model_files import fetch, find_adapter, resolve_model
from diffsae_lens.study._config import StudyConfig
from diffsae_lens.study._parts import ScenesConfig

BYTES_PER_TRAINED_WEIGHT = 12
"""The weight and Adam's two moments, in float32; excludes gradients and activations."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size, from its configuration."""

    d_model: int
    n_layers: int


def check_feasible(config: StudyConfig) -> None:
    """Refuse prompts that the behaviour does not have, and sizes that the model or machine cannot meet.

    Raises:
        ValueError: a setting cannot be met; the message names it.
        ModelUnavailableError: the base model is not available.
    """
    behaviour = get_behaviour(config.behaviour_name)
    for name, draw in config.draws().items():
        check_draw(name, draw.n_samples, partial(draw.samples, behaviour))
    for name in ("sayings", "sweep", "example"):
        part: ScenesConfig | None = getattr(config, name)
        if part is not None:
            scenes = partial(
                behaviour.minimal_pairs, "test", (None,), n_scenes=part.n_scenes, seed=config.seed
            )
            check_draw(f"{name}.n_scenes", part.n_scenes, scenes)
    size = model_size(config.models.base, config.models.base_revision)
    if max(config.layers) >= size.n_layers:
        raise InvalidValueError(
            f"`layers` must lie in 0 to {size.n_layers - 1}, the model's layers, got {max(config.layers)}"
        )
    given = config.models.d_model
    if given is not None and size.d_model != given:
        raise InvalidValueError(
            f"`models.d_model` is {given}, but {config.models.base} is {size.d_model} wide"
        )
    _check_dictionaries(config, size.d_model)


def _check_dictionaries(config: StudyConfig, d_model: int) -> None:
    counts = () if config.features is None else config.features.counts
    for name, part in config.trained.items():
        for spec in part.dictionaries:
            d_sae = spec.expansion * d_model
            if name == "tokens" or spec.kind == "crosscoder":
                check_count(f"{name}.k", part.k, at_most=d_sae)
            for count in counts:
                check_count("features.counts", count, at_most=d_sae)
    if config.tokens is not None:  # in lockstep; the published ones are trained singly
        n_weights = sum(spec.n_weights(d_model) for spec in config.tokens.dictionaries)
        check_memory("tokens.dictionaries", n_weights, config.models.device)


def model_size(model: str, revision: str | None = None) -> ModelSize:
    """Read a model's size without loading its weights; arguments as for `load_pair`.

    Raises:
        ValueError: there is no such model, or it cannot be read.
        ModelUnavailableError: it cannot be fetched.
    """
    config = fetch(AutoConfig, resolve_model(model), revision).get_text_config()
    return ModelSize(d_model=config.hidden_size, n_layers=config.num_hidden_layers)


def weights_identity(model: str, revision: str | None = None) -> str:
    """Identify a model's weights independently of its name, without loading them.

    Returns:
        For a folder, a hash of its weight files; for a hub id, its commit if cached, else the id.

    Raises:
        ValueError: there is no such model.
    """
    if model == EMBEDDED_MODEL:
        return model
    place = resolve_model(model)
    files = [f for suffix in ("safetensors", "bin") for f in Path(place).glob(f"*.{suffix}")]
    if files:
        return digest({file.name: sha256(file) for file in files})
    return _cached_commit(place, revision) or f"{place}@{revision or 'main'}"


def fetch_config(model: str, revision: str | None = None) -> None:
    """Cache the configuration of a hub id, from which `weights_identity` reads the commit.

    Raises:
        ValueError: there is no such model.
        ModelUnavailableError: it cannot be fetched.
    """
    if model == EMBEDDED_MODEL or Path(place := resolve_model(model)).is_dir():
        return
    if not _cached_commit(place, revision) and not find_adapter(place, revision):
        fetch(AutoConfig, place, revision)


def _cached_commit(hub_id: str, revision: str | None) -> str | None:
    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(hub_id, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name
    return None


def check_out_folder(name: str, path: Path) -> None:
    """Refuse a folder that cannot be created or written to.

    Raises:
        ValueError: the path or one of its parents is a file, or is not writable.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        raise InvalidValueError(
            f"`{name}` must be a folder, but {there} is not one; choose another path"
        )
    if there != path and not os.access(there, os.W_OK | os.X_OK):
        raise InvalidValueError(
            f"`{name}` {path} cannot be made: nothing may be written in {there}; choose another path"
        )


def check_draw(name: str, value: int, draw: Callable[[], Any]) -> None:
    """Refuse a number of prompts (a setting's name and value) that a split does not have.

    Raises:
        ValueError: there are fewer; the message says how many.
    """
    try:
        draw()
    except ValueError as error:
        raise InvalidValueError(f"`{name}` is {value}, but {error}") from error


def check_memory(name: str, n_weights: int, device: str) -> None:
    """Refuse to train more weights at once than fit into a device's memory with Adam's moments.

    Raises:
        ValueError: they do not fit; the message names the setting and the memory needed and available.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return  # the GPU is another machine's
    needed, available = BYTES_PER_TRAINED_WEIGHT * n_weights, available_bytes(device)
    if needed > available:
        raise InvalidValueError(
            f"`{name}` asks for {n_weights:,} weights, whose training takes at least {needed / 1e9:,.1f} GB, "
            f"but {device} has {available / 1e9:,.1f} GB available; ask for fewer features or layers"
        )


def available_bytes(device: str) -> int:
    """Return the memory in bytes that a process may still use, within a container's limit."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    available = psutil.virtual_memory().available
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, min(available, limit - used + int(stat["inactive_file"])))
    except (OSError, ValueError, KeyError):  # no control group, or "max"
        return available
