"""Both completions of samples in one batch, for passes that differ only at dictionaries' hook points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.effects._likelihood import COMPLETIONS, encode_completions, score_completions
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair._below import Below, read_below
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import batches_of


@dataclass(frozen=True, kw_only=True, eq=False)
class BothCompletions:
    """Samples with both completions, one text each, read up to the lowest hook point in use."""

    below: Below
    labels: Int[Tensor, "text pos"]
    signs: Float[Tensor, "text"]
    """1 for an unwanted completion, -1 for a wanted one."""

    @property
    def pair(self) -> HookedModelPair:
        """The two models."""
        return self.below.pair

    def log_odds(self, rows: Int[Tensor, "row"] | slice = slice(None)) -> Float[Tensor, "row"]:
        """Return what texts add to the log-odds, under the hooks now on the pair; rows may repeat."""
        with self.below.resumed(rows):
            scores = score_completions(self.pair, self.below.tokens[rows], self.labels[rows])
        return scores * self.signs[rows]

    @torch.no_grad()
    def codes(
        self, dictionary: SAE, value: Float[Tensor, "text pos d_in"]
    ) -> Float[Tensor, "text pos d_sae"]:
        """Return features' activations on all texts, 0 where the dictionary does not act."""
        tokens = self.below.tokens
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        counted = DictionaryRecord.of(dictionary).tokens.counted(tokens, positions)
        return dictionary.encode(value.detach()).masked_fill(~counted[..., None], 0)


def both_completions(
    pair: HookedModelPair, samples: Sequence[Sample], hooks: Sequence[str], batch_size: int
) -> Iterator[BothCompletions]:
    """Yield batches of checked samples, read up to the lowest of the hook points."""
    for index, _ in batches_of(
        [sample.prompt for sample in samples], batch_size, "reading samples"
    ):
        texts = [(samples[i].prompt, getattr(samples[i], w)) for i in index for w in COMPLETIONS]
        tokens, labels = encode_completions(pair, texts)
        signs = torch.tensor([1.0, -1.0], device=tokens.device).repeat(len(index))
        below = read_below(pair, tokens, hooks)
        yield BothCompletions(below=below, labels=labels, signs=signs)
