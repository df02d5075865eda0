"""Paired activations on disk: many virtual hook points from one harvest, in SAELens's own format.

The folder is a `datasets` folder with one `Array2D(context_size, d_in)` column for each virtual hook
point and a `token_ids` column, which is what SAELens reads with `use_cached_activations=True`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens.notebook import Record
from diffsae_lens.pair import HookedModelPair

_MANIFEST = "harvest.json"


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """How activations are harvested."""

    batch_size: int = 16
    """Sequences a forward pass."""
    sequences_per_shard: int = 256
    """Sequences held in memory at once, and lost at most by an interruption."""
    skip_positions: int = 1
    """Leading positions left out: the first token's activations are 10 to 1000 times the others'."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        for name in ("batch_size", "sequences_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.skip_positions < 0:
            raise ValueError(f"`skip_positions` must not be negative, got {self.skip_positions}")


@dataclass(frozen=True)
class PairedActivations(Record):
    """A finished harvest on disk. SAELens reads its `path` as `cached_activations_path`."""

    path: Path
    hook_names: tuple[str, ...]
    """Virtual hook points, such as `blocks.18.hook_resid_post.diff`."""
    context_size: int
    """Positions kept of each sequence."""
    n_sequences: int
    ignored_token_ids: tuple[int, ...]
    """Padding and special tokens; their activations are stored but never yielded."""
    provenance: dict[str, Any] = field(repr=False)

    def rows(self, start: int, stop: int) -> dict[str, Float[Tensor, "token d_in"]]:
        """Read the kept tokens of some sequences into memory, aligned over the hook points."""
        return self._take(range(start, min(stop, self.n_sequences)))

    def _take(self, indices: Sequence[int]) -> dict[str, Tensor]:
        dataset = _load_dataset(self.path).select_columns([*self.hook_names, "token_ids"])
        dataset = dataset.with_format("torch")
        rows: Any = dataset[list(indices)]
        kept = ~torch.isin(rows["token_ids"], torch.tensor(self.ignored_token_ids))
        return {name: rows[name][kept] for name in self.hook_names}

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        stop: int | None = None,
        sequences_in_memory: int = 512,
    ) -> Iterator[dict[str, Float[Tensor, "batch d_in"]]]:
        """Yield shuffled token batches for ever, the same tokens for every hook point.

        Args:
            batch_size: tokens a batch.
            seed: of the order; the same seed gives the same batches.
            start: first sequence used.
            stop: end of the sequences used, all if None.
            sequences_in_memory: how many sequences are read and shuffled together.

        Raises:
            ValueError: fewer tokens than one batch.
        """
        generator = torch.Generator().manual_seed(seed)
        stop = self.n_sequences if stop is None else stop
        while True:
            order = (start + torch.randperm(stop - start, generator=generator)).tolist()
            left: dict[str, Tensor] | None = None
            n_batches = 0
            for i in range(0, len(order), sequences_in_memory):
                rows = self._take(order[i : i + sequences_in_memory])
                if left is not None:
                    rows = {name: torch.cat([left[name], rows[name]]) for name in rows}
                n_tokens = len(rows[self.hook_names[0]])
                shuffled = torch.randperm(n_tokens, generator=generator)
                for j in range(0, n_tokens - batch_size + 1, batch_size):
                    n_batches += 1
                    yield {n: rows[n][shuffled[j : j + batch_size]] for n in self.hook_names}
                rest = shuffled[n_tokens - n_tokens % batch_size :]
                left = {name: rows[name][rest] for name in self.hook_names}
            if n_batches == 0:
                raise ValueError(
                    f"`batch_size` {batch_size} is more than the tokens of the harvest in {self.path}"
                )


def harvest(
    pair: HookedModelPair,
    tokens: Int[Tensor, "seq pos"],
    path: str | Path,
    *,
    hook_names: Sequence[str],
    config: HarvestConfig | None = None,
) -> PairedActivations:
    """Run both models over the tokens once and store the activations of many hook points.

    An interrupted harvest goes on where it was; a finished one with the same inputs is opened.

    Args:
        pair: the two models.
        tokens: right-padded sequences, special tokens and padding included.
        path: the folder; built in `<path>.partial` and renamed.
        hook_names: virtual hook points, such as `blocks.18.hook_resid_post.diff`.
        config: batch sizes and the first-token policy.

    Returns:
        The activations, float32.

    Raises:
        ValueError: unknown hook points, no tokens left after `skip_positions`, or `path` holds a
            harvest of something else or a damaged one.
    """
    config = config or HarvestConfig()
    path = Path(path)
    for name in hook_names:
        pair.check_hook_name(name)
    if not hook_names or tokens.numel() == 0 or tokens.shape[1] <= config.skip_positions:
        raise ValueError(
            f"nothing to harvest: {len(hook_names)} `hook_names`, `tokens` of shape "
            f"{tuple(tokens.shape)} and `skip_positions` {config.skip_positions}"
        )
    provenance = _provenance(pair, tokens, hook_names, config)
    if not (path / _MANIFEST).exists():
        shards = path.with_name(path.name + ".partial")
        _harvest_shards(pair, tokens, shards, list(hook_names), config, provenance)
        _consolidate(shards, path, provenance)
    opened = open_harvest(path)
    if opened.provenance != provenance:
        raise ValueError(
            f"`path` {path} holds another harvest ({opened.provenance}, wanted {provenance}); "
            "choose another path or remove it"
        )
    return opened


def open_harvest(path: str | Path) -> PairedActivations:
    """Open a finished harvest and check its files against their checksums.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: a file is missing or does not have its checksum; says which.
    """
    path = Path(path)
    manifest = json.loads((path / _MANIFEST).read_text())
    for name, digest in manifest["sha256"].items():
        file = path / name
        if not file.exists() or _sha256(file) != digest:
            raise ValueError(
                f"the harvest is damaged: {file} is missing or was changed; remove {path}"
            )
    layout = manifest["layout"]
    return PairedActivations(
        path=path,
        hook_names=tuple(layout["hook_names"]),
        context_size=layout["context_size"],
        n_sequences=layout["n_sequences"],
        ignored_token_ids=tuple(layout["ignored_token_ids"]),
        provenance=manifest["provenance"],
    )


def _provenance(
    pair: HookedModelPair, tokens: Tensor, hook_names: Sequence[str], config: HarvestConfig
) -> dict[str, Any]:
    digest = hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
    return {
        "pair": asdict(pair.metadata),
        "tokens_sha256": digest,
        "tokens_shape": list(tokens.shape),
        "hook_names": list(hook_names),
        "skip_positions": config.skip_positions,
        "prepend_bos": pair.prepend_bos,
        "ignored_token_ids": sorted(pair.tokenizer.all_special_ids),
        "dtype": str(next(pair.finetuned.original_model.parameters()).dtype),
    }


def _harvest_shards(
    pair: HookedModelPair,
    tokens: Tensor,
    shards: Path,
    hook_names: list[str],
    config: HarvestConfig,
    provenance: dict[str, Any],
) -> None:
    begun = shards / "provenance.json"
    if not begun.exists() or json.loads(begun.read_text()) != provenance:
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
        partial = begun.with_suffix(".writing")
        partial.write_text(json.dumps(provenance))
        partial.rename(begun)
    context = tokens.shape[1] - config.skip_positions
    columns: dict[str, Any] = {
        name: datasets.Array2D(shape=(context, pair.d_in(name)), dtype="float32")
        for name in hook_names
    }
    columns["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context)
    starts = range(0, len(tokens), config.sequences_per_shard)
    with tqdm(total=len(tokens), desc="harvesting", unit="sequence") as bar:
        for i, start in enumerate(starts):
            shard = shards / f"shard_{i:05d}"
            chunk = tokens[start : start + config.sequences_per_shard]
            if not shard.exists():
                part = shards / ".writing"
                shutil.rmtree(part, ignore_errors=True)
                rows = _run(pair, chunk, hook_names, config, bar)
                datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).save_to_disk(
                    str(part), num_shards=1
                )
                part.rename(shard)
            bar.update(start + len(chunk) - bar.n)


@torch.no_grad()
def _run(
    pair: HookedModelPair, tokens: Tensor, hook_names: list[str], config: HarvestConfig, bar: tqdm
) -> dict[str, Any]:
    """Both models on a shard's sequences, in batches of like lengths cut to their longest."""
    skip = config.skip_positions
    n_sequences, width = tokens.shape
    columns = {name: torch.zeros(n_sequences, width - skip, pair.d_in(name)) for name in hook_names}
    stop = stop_layer(hook_names)
    # Padding is on the right and causal attention does not look there: cutting it changes nothing.
    pad: Any = pair.tokenizer.pad_token_id
    lengths = last_position(tokens.ne(pad)) + 1
    lengths = lengths.clamp(min=skip + 1)
    for index in lengths.argsort(descending=True).split(config.batch_size):
        longest = int(lengths[index].max())
        _, cache = pair.run_with_cache(
            tokens[index, :longest].to(pair.device), names_filter=hook_names, stop_at_layer=stop
        )
        for name in hook_names:
            columns[name][index, : longest - skip] = cache[name][:, skip:].float().cpu()
        bar.update(len(index))
    ids = tokens[:, skip:].to(torch.int32).numpy()
    return {name: values.numpy() for name, values in columns.items()} | {"token_ids": ids}


def last_position(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Return the index of the last True of each row (0 where there is none)."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def stop_layer(hook_names: Sequence[str]) -> int | None:
    """Return the `stop_at_layer` that reaches every hook, None if one lies outside the blocks."""
    layers = []
    for name in hook_names:
        parts = name.split(".")
        if parts[0] != "blocks":
            return None
        layers.append(int(parts[1]))
    return max(layers) + 1


def _consolidate(shards: Path, path: Path, provenance: dict[str, Any]) -> None:
    """Join the shards into one dataset, write the manifest, and only then give it its name."""
    parts = [_load_dataset(shard) for shard in sorted(shards.glob("shard_*"))]
    whole = shards / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    datasets.concatenate_datasets(parts).save_to_disk(str(whole))
    context = provenance["tokens_shape"][1] - provenance["skip_positions"]
    manifest = {
        "layout": {
            "hook_names": provenance["hook_names"],
            "context_size": context,
            "n_sequences": provenance["tokens_shape"][0],
            "ignored_token_ids": provenance["ignored_token_ids"],
        },
        "provenance": provenance,
        "sha256": {file.name: _sha256(file) for file in sorted(whole.glob("*.arrow"))},
    }
    (whole / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.rename(path)
    shutil.rmtree(shards)


def _load_dataset(path: Path) -> datasets.Dataset:
    dataset = datasets.load_from_disk(str(path))
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(f"{path} holds several datasets, not one harvest; remove it")
    return dataset


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
