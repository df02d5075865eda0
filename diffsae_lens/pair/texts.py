"""Texts and tokens of a pair: one policy for the beginning of a sequence, one limit, one check."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffsae_lens import _checks
from diffsae_lens.pair.module import PairedModule


class PairedText(PairedModule):
    """A pair of models that reads texts."""

    prepend_bos: bool

    @property
    def cfg(self) -> Any:
        """The fine-tuned model's TransformerLens configuration."""
        return self._models[1].cfg

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that both models share."""
        return self._models[1].tokenizer

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse tokens that are not `[seq, pos]` ids within vocabulary and context, padded on the right.

        Raises:
            TypeError: not a tensor of integers.
            ValueError: says what is wrong with them.
        """
        _checks.check_tokens(
            "tokens",
            tokens,
            n_ctx=self.cfg.n_ctx,
            d_vocab=self.cfg.d_vocab,
            pad_token_id=self.tokenizer.pad_token_id,  # type: ignore[arg-type]
            bos_token_id=self.tokenizer.bos_token_id,  # type: ignore[arg-type]
        )

    def to_tokens(
        self,
        input: str | Sequence[str],
        prepend_bos: bool | None = None,
        *,
        truncate: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Tokenise by the pair's own `prepend_bos` policy, `[batch, pos]`; else as TransformerLens.

        A text that begins with the beginning-of-sequence token (a chat template's, say) gets no second
        one. Texts beyond the context are refused unless `truncate` says what to do with them.

        Raises:
            ValueError: a text of more tokens than the context.
        """
        texts = [input] if isinstance(input, str) else list(input)
        tokens = self._models[1].to_tokens(
            [self.with_bos(text, prepend_bos=prepend_bos) for text in texts],
            prepend_bos=False,
            truncate=bool(truncate),
            **kwargs,
        )
        if truncate is None and tokens.shape[1] > self.cfg.n_ctx:
            raise ValueError(
                f"`input` has a text of {tokens.shape[1]} tokens, more than the model's context of "
                f"{self.cfg.n_ctx}; shorten it, or pass `truncate=True` to cut it"
            )
        return tokens

    def with_bos(self, text: str, *, prepend_bos: bool | None = None) -> str:
        """Return the text with one beginning-of-sequence token before it, if the policy has one."""
        prepend_bos = self.prepend_bos if prepend_bos is None else prepend_bos
        bos = f"{self.tokenizer.bos_token}"
        return text if not prepend_bos or text.startswith(bos) else bos + text

    def check_context(self, n_tokens: int) -> None:
        """Refuse more tokens than the models' context.

        Raises:
            ValueError: says both numbers.
        """
        if n_tokens > self.cfg.n_ctx:
            raise ValueError(
                f"{n_tokens} tokens do not fit the model's context of {self.cfg.n_ctx}; shorten the "
                "text, or ask for fewer new tokens"
            )

    def keep_logits(self, n: int) -> dict[str, int]:
        """Return the keyword that has a forward pass compute the last `n` positions' logits alone.

        Empty for an architecture that has no such keyword and computes them all.
        """
        known = inspect.signature(self._models[1].original_model.forward).parameters
        return {"logits_to_keep": n} if "logits_to_keep" in known else {}
