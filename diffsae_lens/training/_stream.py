"""Streaming of paired activations: both models run on demand during training, with no harvest on disk."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.prefetch import PrefetchingIterator
from safetensors import safe_open
from safetensors.torch import save_file
from typing_extensions import override

from diffsae_lens._display import Record
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.training._activations import PairedActivations
from diffsae_lens.training._columns import seen
from diffsae_lens.training._harvest import HarvestConfig, checked_hook_names
from diffsae_lens.training._mixing import Batch, Feed, Mixer
from diffsae_lens.training._run_config import TrainingRun
from diffsae_lens.training._stream_reader import StreamConfig, TextReader, n_rows
from diffsae_lens.training._text_stream import FIRST_TEXTS, ONCE, Place, TextStream

POSITION = "stream.safetensors"
"""The checkpoint file with the stream's position and its buffer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedActivations(Record):
    """Activations that are computed while dictionaries train on them; made by `stream`."""

    hook_names: tuple[str, ...]
    """Virtual hook points, such as `blocks.18.hook_resid_post.diff`."""
    context_size: int
    """Maximum number of positions kept per text."""
    pair: PairMetadata = field(repr=False)
    """The two models."""
    policy: TokenPolicy = field(repr=False)
    """Which tokens the stream yields."""
    recipe: dict[str, Any] = field(repr=False)
    """What the activations depend on: the models' fingerprints, the first texts, hook points, settings."""
    _reader: TextReader = field(repr=False)
    _texts: Iterable[Text | Mapping[str, Any]] = field(repr=False)
    _held_out: list[Text] = field(repr=False)
    _after_held_out: Place = field(repr=False)
    _begun: list[TextStream] = field(repr=False)
    """The stream after the held-out texts, unless a training run has drawn from it."""

    @property
    def widths(self) -> dict[str, int]:
        """The width of each hook point."""
        return {name: self._reader.pair.d_in(name) for name in self.hook_names}

    def feed(self, run: TrainingRun) -> Feed:
        """Return the batches for a training run."""
        return _StreamFeed(self, run)

    def first_batches(self, run: TrainingRun) -> Iterator[Batch]:
        """Yield the first batches of a training run, on which its normalisation is estimated."""
        texts = self.begin()
        with texts.rewound():
            feed = _StreamFeed(self, run, texts)
            yield next(feed)  # raises if there is none
            n_more = run.trainer.n_batches_for_norm_estimate - 1
            yield from islice(iter(feed.next_if_any, None), n_more)
        self._begun.append(texts)

    def held_out(self, run: TrainingRun) -> Batch:  # noqa: ARG002
        """Read the held-out tokens, on which nothing is trained."""
        return self.shown(self._reader.read(self._held_out, 0))

    def shown(self, columns: Batch) -> Batch:
        """Return the hook points derived from the columns that were read."""
        return {name: seen(name, columns) for name in self.hook_names}

    def begin(self) -> TextStream:
        """Return the stream of texts after those held out.

        Raises:
            ValueError: the texts were read before and can be read only once, or differ this time.
        """
        if self._begun:
            return self._begun.pop()
        if iter(self._texts) is self._texts:
            raise InvalidValueError(f"`texts` was read once by a training; {ONCE}")
        texts = TextStream(self._texts, self._reader.config.text_column)
        texts.go_to(self._after_held_out)
        return texts


Activations = PairedActivations | StreamedActivations
"""The activations on which dictionaries are trained."""


class _StreamFeed(Feed):
    """Batches from a mixing buffer that both models fill."""

    def __init__(
        self, stream: StreamedActivations, run: TrainingRun, texts: TextStream | None = None
    ) -> None:
        self._stream = stream
        self._run = run
        self._texts = texts
        """Given to peek at the first batches; a training run opens its own when it first draws."""
        self._generator = torch.Generator().manual_seed(run.seed)
        self._mixer = Mixer(
            run.trainer.train_batch_size_samples,
            self._generator,
            n_mixed=stream._reader.config.buffer_tokens // 2,
        )
        self._chunks: Iterator[tuple[Batch, Place]] | None = None
        self._place = Place()
        self._n_tokens = 0

    @override
    def __next__(self) -> Batch:
        batch = self.next_if_any()
        if batch is None:
            n_held_out = self._stream._after_held_out.n_texts
            raise InvalidValueError(
                f"`texts` ended after {self._place.n_texts} texts, {n_held_out} of them held out and "
                f"{self._n_tokens} tokens in the others, special and leading ones aside; the training asks "
                f"for more ({self._run.trainer.total_training_samples} tokens). Give more texts or train for "
                "fewer steps; a list is read again once it is used up"
            )
        return batch

    def next_if_any(self) -> Batch | None:
        """Return the next batch, or None once there are too few tokens for one."""
        while not self._mixer.n_batches:
            columns, self._place = next(self._opened, ({}, self._place))
            if not columns:
                self._mixer.release()
                if not self._mixer.n_batches:
                    return None
                break
            self._n_tokens += n_rows(columns)
            self._mixer.add(columns)
        return self._stream.shown(self._mixer.serve())

    @property
    def _opened(self) -> Iterator[tuple[Batch, Place]]:
        if self._chunks is None:
            reader, texts = self._stream._reader, self._texts or self._stream.begin()
            self._place = texts.place
            self._chunks = reader.chunks(texts)
            if reader.config.n_read_ahead and self._texts is None:
                self._chunks = PrefetchingIterator(self._chunks, reader.config.n_read_ahead)
        return self._chunks

    @override
    def save(self, checkpoint: Path) -> None:
        position = {
            "place": self._place, "n_tokens": self._n_tokens, "n_batches": self._mixer.n_batches,
        }  # fmt: skip
        save_file(
            self._mixer.left | {"generator": self._generator.get_state()},
            checkpoint / POSITION,
            metadata={"position": json.dumps(position)},
        )

    @override
    def go_on(self, checkpoint: Path, n_batches: int) -> None:
        self.close()
        with safe_open(checkpoint / POSITION, "pt") as file:
            position = json.loads(file.metadata()["position"])
            left = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._generator.set_state(left.pop("generator"))
        self._mixer.put_back(left, position["n_batches"])
        self._n_tokens = position["n_tokens"]
        self._place = Place(*position["place"])
        self._texts = self._stream.begin()
        self._texts.go_to(self._place)

    @override
    def close(self) -> None:
        if isinstance(self._chunks, PrefetchingIterator):
            self._chunks.close()


@typed
def stream(
    pair: HookedModelPair,
    texts: Iterable[Text | Mapping[str, Any]],
    *,
    hook_names: Sequence[str],
    context_size: Count = 128,
    config: StreamConfig | None = None,
    harvest: HarvestConfig | None = None,
) -> StreamedActivations:
    """Run both models on texts while `train_dictionaries` trains on them, with no harvest on disk.

    The first texts are held out, and the threshold is set on them. The next ones are read twice, once for
    the normalisation. All texts pass through a mixing buffer, so that a batch holds tokens from distant
    texts. An interrupted training run resumes from its newest checkpoint, which holds the buffer, and skips
    the texts that it has already read. It arrives at the same weights.

    Args:
        pair: the two models.
        texts: any iterable of texts, of conversations, or of rows with a column of these, such as a
            streaming dataset. Texts are read once, in the given order; empty ones are skipped.
        hook_names: virtual hook points of any number of sites, such as `blocks.18.hook_resid_post.diff`.
        context_size: number of tokens read per text; the rest is cut off.
        config: what is held out, the size of the buffer, the column.
        harvest: batch sizes and the first-token policy.

    Returns:
        Activations that `train_dictionaries` takes in place of a harvest.

    Raises:
        TypeError: not an iterable of texts.
        ValueError: unknown hook points, a context no longer than what is skipped, too few texts to hold
            out, or no tokens in those held out.

    Examples:
        >>> stream(pair, dataset, hook_names=["blocks.18.hook_resid_post.diff"])    # doctest: +SKIP
    """
    config, harvest = config or StreamConfig(), harvest or HarvestConfig()
    names = checked_hook_names(pair, hook_names)
    context_size = min(context_size, pair.cfg.n_ctx)
    if context_size <= harvest.skip_positions:
        raise InvalidValueError(
            f"`context_size` must be more than `skip_positions`, {harvest.skip_positions}, got {context_size}"
        )
    policy = TokenPolicy(
        skip_positions=harvest.skip_positions,
        ignored_token_ids=tuple(sorted(pair.tokenizer.all_special_ids)),
    )
    begun = TextStream(texts, config.text_column)
    held_out = begun.take(config.n_held_out)
    if not held_out:
        raise InvalidValueError(f"`texts` gives no texts ({ONCE})")
    if len(held_out) < config.n_held_out:
        raise InvalidValueError(
            f"`texts` ended after {len(held_out)} texts, and the first {config.n_held_out} are held "
            "out; give more texts, or hold out fewer by `n_held_out`"
        )
    read = pair.tokenise(held_out, max_tokens=context_size)
    if not policy.counted(read.tokens, read.positions).any():
        raise InvalidValueError(
            f"the first {len(held_out)} `texts`, which are held out, have no tokens but special and leading "
            "ones; give longer texts"
        )
    reader = TextReader(
        pair=pair, hook_names=names, context_size=context_size, policy=policy, config=config,
        harvest=harvest,
    )  # fmt: skip
    return StreamedActivations(
        hook_names=names,
        context_size=context_size - harvest.skip_positions,
        pair=pair.metadata,
        policy=policy,
        recipe=reader.recipe | {FIRST_TEXTS: begun.place.sha256},
        _reader=reader, _texts=texts, _held_out=held_out, _after_held_out=begun.place, _begun=[begun],
    )  # fmt: skip
