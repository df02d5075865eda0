"""Harvest of paired activations to disk: many virtual hook points in one pass, in SAELens's own format.

`_columns` describes the contents of the folder.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens._artifact import Job, build, find
from diffsae_lens._checks import check_count, check_items, check_texts
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import check_fields, typed
from diffsae_lens.pair._fingerprint import same_weights
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.training._activations import KIND, PairedActivations, load_dataset
from diffsae_lens.training._columns import StoredDtype, encoded, features_of, stored_columns
from diffsae_lens.training._sequences import SequenceReader


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """Settings of a harvest."""

    batch_size: int = 16
    """Sequences per forward pass."""
    sequences_per_shard: int = 256
    """Sequences held in memory at once; an interruption loses at most this many."""
    skip_positions: int = 1
    """Leading positions left out: the first token's activations are 10 to 1000 times the others'."""
    dtype: StoredDtype = "float32"
    """Dtype on disk. Half precision halves the size, with a relative error of 2**-8 (bfloat16) or 2**-11
    (float16) in each value of the base and of the difference, which is computed in float32; SAELens cannot
    read it."""

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        check_fields(self)
        check_count("batch_size", self.batch_size)
        check_count("sequences_per_shard", self.sequences_per_shard)
        check_count("skip_positions", self.skip_positions, at_least=0)


@typed
def harvest(
    pair: HookedModelPair,
    tokens: Int[Tensor, "seq pos"],
    path: str | Path,
    *,
    hook_names: Sequence[str],
    config: HarvestConfig | None = None,
    base: PairedActivations | None = None,
) -> PairedActivations:
    """Run both models over the tokens once and store the activations of many hook points.

    An interrupted harvest is resumed; a finished one with the same models (whatever their folders are
    called), tokens, hook points and settings is opened; a damaged one is set aside and made again.

    Args:
        pair: the two models.
        tokens: right-padded sequences, including special tokens and padding.
        path: the folder; built in `<path>.partial` and renamed.
        hook_names: virtual hook points, such as `blocks.18.hook_resid_post.diff`.
        config: batch sizes and the first-token policy.
        base: a harvest of another fine-tune of the same base on the same tokens, with `.base` or
            `.concat` at these sites. The base is then read from it, not run: five fine-tunes cost six
            runs over the tokens instead of ten.

    Returns:
        The activations, read in float32; the result is the same with and without `base`.

    Raises:
        ValueError: unknown hook points, tokens that are padded on the left or beyond the context, no
            tokens left after `skip_positions`, activations that are not finite, `path` holds a different
            harvest, or `base` has another base model, other tokens or other sites.
        TypeError: `tokens` is not a tensor of integers.
        OSError: the disk is full or not writable.
    """
    config = config or HarvestConfig()
    hook_names = checked_hook_names(pair, hook_names)
    pair.check_tokens(tokens)
    if tokens.shape[1] <= config.skip_positions:
        raise InvalidValueError(
            f"nothing to harvest: `tokens` of shape {tuple(tokens.shape)} and `skip_positions` "
            f"{config.skip_positions}"
        )
    tokens = tokens.cpu()
    recipe = _recipe(pair, tokens, hook_names, config)
    of_base = None if base is None else _of_base(base, recipe)

    def write(job: Job) -> dict[str, Any]:
        _Harvester(pair, tokens, list(hook_names), config, of_base).run(job)
        return {"pair": asdict(pair.metadata)}

    return PairedActivations.of_manifest(build(path, recipe, write))


@typed
def join_harvests(parts: Sequence[PairedActivations], path: str | Path) -> PairedActivations:
    """Join harvests of different tokens into one, such as those that several machines made.

    Args:
        parts: harvests of one pair with the same hook points and settings, in order.
        path: the folder; built in `<path>.partial` and renamed, opened if it exists.

    Returns:
        The activations of all parts, in order, as one harvest of all tokens would give them.

    Raises:
        TypeError: `parts` are not harvests.
        ValueError: there are none, they differ in more than their tokens, or `path` holds a different
            harvest.
        OSError: the disk is full or not writable.
    """
    parts = check_items("parts", parts, PairedActivations)
    first = parts[0]
    for part in parts[1:]:
        ours, theirs = _shared(first), _shared(part)
        differs = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if differs:
            raise InvalidValueError(
                f"`parts` must differ in nothing but their tokens; {part.path} and {first.path} differ in "
                f"{', '.join(differs)}"
            )
    hashes = [part.recipe["tokens_sha256"] for part in parts]
    recipe = first.recipe | {
        "tokens_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "tokens_shape": [sum(part.n_sequences for part in parts), first.recipe["tokens_shape"][1]],
    }

    def write(job: Job) -> dict[str, Any]:
        _save_joined([part.path for part in parts], job)
        return {"pair": asdict(first.pair)}

    return PairedActivations.of_manifest(build(path, recipe, write))


def _shared(harvest: PairedActivations) -> dict[str, Any]:
    """Return what the parts of a joined harvest have in common."""
    own = ("tokens_sha256", "tokens_shape")
    shared = {name: value for name, value in harvest.recipe.items() if name not in own}
    return shared | {"width of the tokens": harvest.recipe["tokens_shape"][1]}


def _save_joined(folders: Sequence[Path], job: Job) -> None:
    parts = [load_dataset(folder) for folder in folders]
    datasets.concatenate_datasets(parts).save_to_disk(str(job.out))


def checked_hook_names(pair: HookedModelPair, hook_names: Sequence[str]) -> tuple[str, ...]:
    """Return virtual hook points of a pair, without repeats.

    Raises:
        TypeError: not a list of names.
        ValueError: an empty list, an unknown name, or a repeated one.
    """
    names = tuple(check_texts("hook_names", hook_names, allow_empty=True))
    if not names:
        raise InvalidValueError(
            "nothing to harvest: `hook_names` is empty; name at least one virtual hook point"
        )
    for name in names:
        pair.check_hook_name(name)
    if len(set(names)) != len(names):
        raise InvalidValueError(f"`hook_names` must name each hook point once, got {list(names)}")
    return names


_SAME_OF_BASE = {
    "another precision": ("dtype",),
    "other tokens": ("tokens_sha256", "tokens_shape"),
    "other positions left out": ("skip_positions",),
    "another beginning of texts (`prepend_bos`)": ("prepend_bos",),
}
"""What must be the same in the recipes of a pair's harvest and of its base's, in words."""


def _of_base(harvest: PairedActivations, recipe: Mapping[str, Any]) -> PairedActivations:
    """Return the base's activations in another pair's harvest."""
    if harvest.stored_as != "float32":
        raise InvalidValueError(
            "`base` must be stored in float32, since differences are taken from it, got "
            f"{harvest.stored_as}; leave it out, and the base is run"
        )
    differs = [
        said
        for said, names in _SAME_OF_BASE.items()
        if any(harvest.recipe[name] != recipe[name] for name in names)
    ]
    if not same_weights(harvest.recipe["base"], recipe["base"]):
        differs.append("another base model")
    if differs:
        raise InvalidValueError(
            f"`base` must be a harvest of the same base model and tokens; {harvest.path} has "
            f"{', '.join(differs)}"
        )
    hooks = map(VirtualHook.parse, recipe["hook_names"])
    sites = dict.fromkeys(hook.site for hook in hooks if hook.spec.needs_base)
    lacking = [
        site
        for site in sites
        if not {f"{site}.base", f"{site}.concat"} & set(harvest.recipe["hook_names"])
    ]
    if lacking:
        raise InvalidValueError(
            f"`base` must be a harvest with '.base' or '.concat' at {lacking}; {harvest.path} has "
            f"{harvest.recipe['hook_names']}"
        )
    return harvest.showing([VirtualHook(site, "base") for site in sites])


def _recipe(
    pair: HookedModelPair, tokens: Tensor, hook_names: Sequence[str], config: HarvestConfig
) -> dict[str, Any]:
    """Return what the activations depend on; batch and shard sizes are not part of it."""
    ids = tokens.to(torch.int64).contiguous().numpy()
    stored_as = {} if config.dtype == "float32" else {"stored_as": config.dtype}
    return stored_as | {
        "kind": KIND,
        "base": pair.metadata.base_fingerprint,
        "finetuned": pair.metadata.finetuned_fingerprint,
        "dtype": pair.metadata.dtype,
        "tokens_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "tokens_shape": list(tokens.shape),
        "hook_names": list(hook_names),
        "skip_positions": config.skip_positions,
        "prepend_bos": pair.prepend_bos,
        "ignored_token_ids": sorted(pair.tokenizer.all_special_ids),
    }


@dataclass
class _Harvester:
    """Runs a pair over the tokens, shard by shard, and joins the shards."""

    pair: HookedModelPair
    tokens: Tensor
    hook_names: list[str]
    config: HarvestConfig
    of_base: PairedActivations | None
    """The base's activations, if they are on disk."""

    def run(self, job: Job) -> None:
        """Make the missing shards in `job.scratch`, and join all shards in `job.out`."""
        shards = []
        row = 0
        with tqdm(total=len(self.tokens), desc="harvesting", unit="sequence") as bar:
            while row < len(self.tokens):
                stop, shard = self._next_shard(job.scratch, row, bar)
                shards.append(shard)
                row = stop
                bar.update(row - bar.n)
        _save_joined(shards, job)

    def _next_shard(self, scratch: Path, row: int, bar: tqdm) -> tuple[int, Path]:
        """Return the shard that begins at a row, from an earlier attempt (of any shard size) or made now."""
        there = sorted(
            tuple(int(part) for part in found.name.split("_")[1:])
            for found in scratch.glob("rows_*")
            if found.name.removeprefix("rows_").replace("_", "").isdigit()
        )
        for start, stop in reversed(there):
            shard = scratch / _shard_name(start, stop)
            if start == row and find(shard, {"rows": [start, stop]}) is not None:
                return stop, shard
        later = [start for start, _ in there if start > row]
        stop = min([row + self.config.sequences_per_shard, len(self.tokens), *later])
        shard = scratch / _shard_name(row, stop)
        build(shard, {"rows": [row, stop]}, lambda job: self._write(row, stop, job, bar))
        return stop, shard

    def _write(self, start: int, stop: int, job: Job, bar: tqdm) -> None:
        context = self.tokens.shape[1] - self.config.skip_positions
        widths = {name: self.pair.d_in(name) for name in self._columns}
        features = features_of(widths, context, self.config.dtype)
        rows = self._activations(start, stop, bar)
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(job.out), num_shards=1)

    @property
    def _columns(self) -> list[str]:
        return stored_columns(self.hook_names, self.config.dtype)

    def _activations(self, start: int, stop: int, bar: tqdm) -> dict[str, Any]:
        """Return the contents of a shard for its sequences."""
        skip, tokens = self.config.skip_positions, self.tokens[start:stop]
        reader = SequenceReader(
            pair=self.pair,
            hook_names=self._columns,
            batch_size=self.config.batch_size,
            skip_positions=skip,
            of="tokens",
        )
        of_base = None if self.of_base is None else self.of_base.sequences(start, stop)
        columns = reader.read(tokens, first=start, of_base=of_base, on_batch=bar.update)
        columns = encoded(columns, self.config.dtype)
        columns["token_ids"] = tokens[:, skip:].to(torch.int32)
        return {name: values.numpy() for name, values in columns.items()}


def _shard_name(start: int, stop: int) -> str:
    return f"rows_{start:08d}_{stop:08d}"
