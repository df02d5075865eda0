"""Reading of a text stream in half buffers of tokens, and the settings for cutting and holding out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import pad

from diffsae_lens._typed import Checked, Count, Natural
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.training._harvest import HarvestConfig
from diffsae_lens.training._mixing import Batch
from diffsae_lens.training._sequences import SequenceReader
from diffsae_lens.training._text_stream import Place, TextStream


@dataclass(frozen=True, kw_only=True)
class StreamConfig(Checked):
    """How a stream of texts is held out, mixed and read ahead."""

    buffer_tokens: Count = 65_536
    """Tokens held in memory (and up to a batch more), half of which stay to be mixed with the next ones.
    Checkpoints hold them too. They take 4 bytes per token and dimension that the dictionaries read."""
    n_held_out: Count = 256
    """Number of texts at the beginning that are not trained on; the threshold is set on them."""
    text_column: str = "text"
    """Column of the text if the stream consists of rows, such as a dataset's."""
    n_read_ahead: Natural = 0
    """Half buffers read ahead in a thread while dictionaries train, useful if the models have their own
    device. They come on top of `buffer_tokens`."""


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """A reader of texts at the hook points from which the requested ones are derived."""

    pair: HookedModelPair
    hook_names: tuple[str, ...]
    context_size: int
    policy: TokenPolicy
    config: StreamConfig
    harvest: HarvestConfig

    @cached_property
    def _sequences(self) -> SequenceReader:
        # One requested view of a site is read directly; several are derived from both activations.
        hooks = [VirtualHook.parse(name) for name in self.hook_names]
        sites = [hook.site for hook in hooks]
        columns = [
            hook if sites.count(hook.site) == 1 else hook.with_view("concat") for hook in hooks
        ]
        return SequenceReader(
            pair=self.pair,
            hook_names=list(dict.fromkeys(hook.name for hook in columns)),
            batch_size=self.harvest.batch_size,
            skip_positions=self.policy.skip_positions,
            of="texts",
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """What activations and batches depend on, apart from the texts."""
        return {
            "kind": "stream",
            "base": self.pair.metadata.base_fingerprint,
            "finetuned": self.pair.metadata.finetuned_fingerprint,
            "dtype": self.pair.metadata.dtype,
            "hook_names": list(self.hook_names),
            "context_size": self.context_size,
            "prepend_bos": self.pair.prepend_bos,
            "sequences_per_shard": self.harvest.sequences_per_shard,
            "buffer_tokens": self.config.buffer_tokens,
            "n_held_out": self.config.n_held_out,
        } | asdict(self.policy)

    def read(self, texts: Sequence[Text], first: int) -> Batch:
        """Read the tokens of texts that count; `first` is the first text's index in the stream."""
        read = self.pair.tokenise(texts, name=f"texts[{first}:]", max_tokens=self.context_size)
        skip = self.policy.skip_positions
        kept = self.policy.counted(read.tokens, read.positions)[:, skip:]
        lacking = max(0, skip + 1 - read.tokens.shape[1])
        padding: Any = self.pair.tokenizer.pad_token_id
        tokens = pad(read.tokens, (0, lacking), value=padding)
        columns = self._sequences.read(tokens, first=first)
        return {name: values[pad(kept, (0, lacking))] for name, values in columns.items()}

    def chunks(self, texts: TextStream) -> Iterator[tuple[Batch, Place]]:
        """Yield half buffers of tokens, with the position in the stream after each."""
        budget = self.config.buffer_tokens - self.config.buffer_tokens // 2
        longest = self.context_size - self.policy.skip_positions
        n_together = max(1, min(self.harvest.sequences_per_shard, budget // longest))
        parts: list[Batch] = []
        n_tokens, first = 0, texts.place.n_texts
        while taken := texts.take(n_together):
            parts.append(self.read(taken, first))
            n_tokens, first = n_tokens + n_rows(parts[-1]), texts.place.n_texts
            if n_tokens + n_together * longest > budget:
                yield _joined(parts), texts.place
                n_tokens = 0
        if parts:
            yield _joined(parts), texts.place


def n_rows(batch: Batch) -> int:
    """Return the number of tokens in a batch."""
    return len(next(iter(batch.values())))


def _joined(parts: list[Batch]) -> Batch:
    """Return all tokens of several batches, emptying these."""
    joined = {name: torch.cat([part.pop(name) for part in parts]) for name in [*parts[0]]}
    parts.clear()
    return joined
