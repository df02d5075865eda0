"""Reading of both models on token sequences, in batches of similar lengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import last_position


@dataclass(frozen=True, kw_only=True)
class SequenceReader:
    """A reader of a pair's hook points on sequences."""

    pair: HookedModelPair
    hook_names: Sequence[str]
    batch_size: int
    """Sequences per forward pass."""
    skip_positions: int
    """Number of leading positions left out."""
    of: str
    """Name of the sequences, for messages."""

    @torch.no_grad()
    def read(
        self,
        tokens: Int[Tensor, "seq pos"],
        *,
        first: int,
        of_base: Mapping[str, Tensor] | None = None,
        on_batch: Callable[[int], object] = int,
    ) -> dict[str, Float[Tensor, "seq _ _"]]:
        """Read whole sequences, in float32.

        Args:
            tokens: sequences padded on the right, longer than `skip_positions`.
            first: index of the first sequence, for messages.
            of_base: values of the base's hook points on the kept positions, if known.
            on_batch: called after every forward pass with the number of sequences in it.

        Raises:
            ValueError: activations are not finite.
        """
        skip, pair = self.skip_positions, self.pair
        n_sequences, width = tokens.shape
        columns = {
            name: torch.zeros(n_sequences, width - skip, pair.d_in(name))
            for name in self.hook_names
        }
        # Padding is on the right, where causal attention does not look, so it can be cut off.
        padding: int = pair.tokenizer.pad_token_id  # type: ignore[assignment]
        lengths = last_position(tokens.ne(padding)) + 1
        lengths = lengths.clamp(min=skip + 1)
        for index in lengths.argsort(descending=True).split(self.batch_size):
            longest = int(lengths[index].max())
            known = None
            if of_base is not None:  # the values at the leading positions do not matter
                known = {
                    VirtualHook.parse(name).site: pad(
                        values[index, : longest - skip], (0, 0, skip, 0)
                    )
                    for name, values in of_base.items()
                }
            read = pair.activations(tokens[index, :longest], list(self.hook_names), base=known)
            for name, values in columns.items():
                values[index, : longest - skip] = read[name][:, skip:].float().cpu()
            self._check_finite(columns, tokens, first, index, lengths[index])
            on_batch(len(index))
        return columns

    def _check_finite(
        self,
        columns: dict[str, Tensor],
        tokens: Tensor,
        first: int,
        index: Tensor,
        lengths: Tensor,
    ) -> None:
        for name, values in columns.items():
            finite = values[index].isfinite().all(dim=2)
            finite |= torch.arange(finite.shape[1]) >= (lengths - self.skip_positions)[:, None]
            if finite.all():
                continue
            row, position = (int(i) for i in (~finite).nonzero()[0])
            sequence = int(index[row])
            raise InvalidValueError(
                f"the activations at {name!r} are not finite in sequence {first + sequence} of `{self.of}`, "
                f"position {position + self.skip_positions}: NaN or infinity comes from "
                f"{self._sides(name, tokens[[sequence]])}. Check the model's weights; in float16 load it in "
                "float32 or bfloat16"
            )

    def _sides(self, name: str, tokens: Tensor) -> str:
        """Say which model's activations are not finite."""
        hook = VirtualHook.parse(name)
        sides = {
            hook.with_view("base").name: "the base model",
            hook.with_view("finetuned").name: "the fine-tuned model",
        }
        read = self.pair.activations(tokens, list(sides))
        found = [text for side, text in sides.items() if not read[side].isfinite().all()]
        return " and ".join(found) or "their difference"
