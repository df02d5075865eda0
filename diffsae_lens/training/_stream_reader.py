"""A stream of texts as half buffers of tokens: what both models read, cut, held out and left out."""

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
    """Tokens that are held in memory, and at most a batch more: half of them stay to be mixed with the next
    ones. In checkpoints too; 4 bytes per token and number of what the dictionaries read."""
    n_held_out: Count = 256
    """Texts at the beginning that the threshold is set on, and that are not trained on."""
    text_column: str = "text"
    """Where the text is if the stream is of rows, as a dataset's is."""
    n_read_ahead: Natural = 0
    """Half buffers that are read in a thread while dictionaries train: with the models on a device of their
    own. They come on top of `buffer_tokens`."""


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads texts as tokens of hook points that others can be seen in."""

    pair: HookedModelPair
    hook_names: tuple[str, ...]
    context_size: int
    policy: TokenPolicy
    config: StreamConfig
    harvest: HarvestConfig

    @cached_property
    def _sequences(self) -> SequenceReader:
        # Of a site that is seen by one view that view is enough; several are seen in both activations.
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
        """What activations and batches depend on, the texts aside."""
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
        """Read the tokens of texts that count; `first` is the first text's number in the stream."""
        read = self.pair.tokenise(texts, name=f"texts[{first}:]", max_tokens=self.context_size)
        skip = self.policy.skip_positions
        kept = self.policy.counted(read.tokens, read.positions)[:, skip:]
        lacking = max(0, skip + 1 - read.tokens.shape[1])
        padding: Any = self.pair.tokenizer.pad_token_id
        tokens = pad(read.tokens, (0, lacking), value=padding)
        columns = self._sequences.read(tokens, first=first)
        return {name: values[pad(kept, (0, lacking))] for name, values in columns.items()}

    def chunks(self, texts: TextStream) -> Iterator[tuple[Batch, Place]]:
        """Yield half buffers of tokens, and the place in the stream after each."""
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
    """Return the tokens of a batch."""
    return len(next(iter(batch.values())))


def _joined(parts: list[Batch]) -> Batch:
    """All tokens of several batches, which are emptied."""
    joined = {name: torch.cat([part.pop(name) for part in parts]) for name in [*parts[0]]}
    parts.clear()
    return joined
