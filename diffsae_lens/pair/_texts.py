"""Texts and tokens of a pair: one policy for the start of a sequence, one length limit, one check."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from diffsae_lens import _checks
from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._chat import Text, is_conversation, rendered, special_tokens
from diffsae_lens.pair._module import PairedModule
from diffsae_lens.pair._tokens import positions_of


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenisedTexts:
    """Texts as a pair reads them, padded on the right; made by `pair.tokenise`."""

    texts: tuple[str, ...]
    tokens: Int[Tensor, "text pos"]
    """Token ids, including the beginning-of-sequence token if the pair's policy adds one."""
    attended: Bool[Tensor, "text pos"]
    """Which tokens are not padding."""
    offsets: Int[Tensor, "text pos 2"]
    """The character span `(start, end)` of each token in its text."""
    of_content: Bool[Tensor, "text pos"]
    """Which tokens are not special and come before the end of a conversation's last message, or, in a
    plain text, before the special tokens at its end."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def positions(self) -> Int[Tensor, "text pos"]:
        """Number of tokens that precede each token in its text; -1 for padding."""
        return positions_of(self.attended)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens per text."""
        return self.attended.sum(1).tolist()

    @property
    def n_last(self) -> int:
        """Number of last positions among which each text's last token is."""
        return 1 + self.tokens.shape[1] - min(self.lengths)

    def take(self, indices: Sequence[int]) -> "TokenisedTexts":
        """Return some of the texts, with no more padding than they need."""
        index = torch.as_tensor(list(indices), dtype=torch.long)
        width = int(self.attended[index].sum(1).max())
        return TokenisedTexts(
            texts=tuple(self.texts[i] for i in indices),
            tokens=self.tokens[index, :width],
            attended=self.attended[index, :width],
            offsets=self.offsets[index, :width],
            of_content=self.of_content[index, :width],
        )

    def batches(self, batch_size: int, desc: str) -> Iterator[tuple[list[int], "TokenisedTexts"]]:
        """Yield `(indices, texts)` batches of similar lengths, the longest first; see `batches_of`."""
        for indices, _ in batches_of(self.texts, batch_size, desc):
            yield indices, self.take(indices)


def batches_of(
    texts: Sequence[str], batch_size: int, desc: str
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield `(indices, texts)` batches of similar lengths, the longest first.

    Raises:
        TypeError, ValueError: `batch_size` is not a count; raised when the first batch is requested.
    """
    batch_size = _checks.check_count("batch_size", batch_size)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with tqdm(total=len(texts), desc=desc, unit="text", leave=False) as bar:
        for i in range(0, len(order), batch_size):
            indices = order[i : i + batch_size]
            yield indices, [texts[j] for j in indices]
            bar.update(len(indices))


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

    def rendered(
        self, input: Text | Sequence[Text], *, name: str = "input", to_be_continued: bool = False
    ) -> list[str]:
        """Return texts as a pair reads them, without BOS; the chat template renders conversations.

        Raises:
            TypeError, ValueError: as for `tokenise`.
        """
        single = isinstance(input, str) or is_conversation(input)
        found = rendered(
            name, [input] if single else input, self.tokenizer, to_be_continued=to_be_continued
        )
        return [one.text for one in found]

    def tokenise(
        self,
        texts: Sequence[Text],
        *,
        name: str = "texts",
        n_new_tokens: int = 0,
        max_tokens: int | None = None,
    ) -> TokenisedTexts:
        """Tokenise texts by the pair's policy, one text per row.

        A conversation, a list of messages with `role` and `content`, is rendered once with the tokenizer's
        chat template. If its last message is not the assistant's, the beginning of an answer follows.

        Args:
            texts: one or more texts or conversations; none may be empty.
            name: the name of the argument, for messages.
            n_new_tokens: how many tokens are to be generated after each text; if any, a last message from
                the assistant is left open.
            max_tokens: the length at which texts are cut; None refuses texts beyond the context.

        Raises:
            TypeError: a single text or conversation, or not a list of them.
            ValueError: an empty list; an empty text; a text beyond the models' context; or a conversation
                although the tokenizer has no chat template.
        """
        read = rendered(name, texts, self.tokenizer, to_be_continued=n_new_tokens > 0)
        begun = [self.with_bos(one.text) for one in read]
        encoded = self.tokenizer(begun, add_special_tokens=False, return_offsets_mapping=True)
        rows = [(ids[:max_tokens], spans[:max_tokens]) for ids, spans in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        )]  # fmt: skip
        lengths = [len(ids) for ids, _ in rows]
        self.check_lengths(name, lengths, n_new_tokens=n_new_tokens)
        shape = (len(rows), max(lengths))
        pad: Any = self.tokenizer.pad_token_id or 0
        tokens = torch.full(shape, pad)
        offsets = torch.zeros(*shape, 2, dtype=torch.long)
        for i, (ids, spans) in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            offsets[i, : len(ids)] = torch.tensor(spans) - (len(begun[i]) - len(read[i].text))
        if int(tokens.max()) >= self.cfg.d_vocab:
            i = int((tokens >= self.cfg.d_vocab).any(1).nonzero()[0])
            token = self.tokenizer.decode([int(tokens[i].max())])
            raise InvalidValueError(
                f"`{name}`[{i}] holds the token {token!r}, for which the models have no embedding; leave "
                "it out"
            )
        attended = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        ends = torch.tensor([0 if one.content_end is None else one.content_end for one in read])
        special = torch.tensor([*special_tokens(self.tokenizer)], dtype=torch.long)
        of_content = attended & (offsets[..., 0] < ends[:, None]) & ~torch.isin(tokens, special)
        return TokenisedTexts(
            texts=tuple(one.text for one in read),
            tokens=tokens,
            attended=attended,
            offsets=offsets,
            of_content=of_content,
        )

    def check_lengths(self, name: str, lengths: Sequence[int], *, n_new_tokens: int = 0) -> None:
        """Refuse texts that are empty or longer than the models' context, beyond which all is noise.

        Args:
            name: the name of the argument, for the message.
            lengths: the length of each text, in tokens.
            n_new_tokens: how many tokens are to be generated after each text.

        Raises:
            ValueError: says which text.
        """
        n_ctx = self.cfg.n_ctx
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] + n_new_tokens > n_ctx:
            new = f" and {n_new_tokens} new ones" if n_new_tokens else ""
            raise InvalidValueError(
                f"`{name}`[{longest}]: {lengths[longest]} tokens{new} do not fit the model's context of "
                f"{n_ctx}; shorten the text"
            )
        if min(lengths) == 0:
            empty = list(lengths).index(0)
            raise InvalidValueError(
                f"`{name}`[{empty}] is empty: no token is left to read; leave it out"
            )

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse anything but `[seq, pos]` ids within vocabulary and context, padded on the right.

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
        input: Text | Sequence[Text],
        prepend_bos: bool | None = None,
        *,
        truncate: bool | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Tokenise like TransformerLens, `[batch, pos]`, but by the pair's own `prepend_bos` policy.

        A text that already begins with the beginning-of-sequence token (from a chat template, say) does
        not get a second one. Texts beyond the context are refused unless `truncate` is given.

        Raises:
            ValueError: a text has more tokens than the context.
        """
        texts = self.rendered(input)
        tokens = self._models[1].to_tokens(
            [self.with_bos(text, prepend_bos=prepend_bos) for text in texts],
            prepend_bos=False,
            truncate=bool(truncate),
            **kwargs,
        )
        if truncate is None and tokens.shape[1] > self.cfg.n_ctx:
            raise InvalidValueError(
                f"`input` has a text of {tokens.shape[1]} tokens, more than the model's context of "
                f"{self.cfg.n_ctx}; shorten it, or pass `truncate=True` to cut it"
            )
        return tokens

    def with_bos(self, text: str, *, prepend_bos: bool | None = None) -> str:
        """Return the text with one beginning-of-sequence token in front, if the policy adds one."""
        prepend_bos = self.prepend_bos if prepend_bos is None else prepend_bos
        bos = f"{self.tokenizer.bos_token}"
        return text if not prepend_bos or text.startswith(bos) else bos + text

    def check_context(self, n_tokens: int) -> None:
        """Refuse more tokens than fit the models' context.

        Raises:
            ValueError: gives both numbers.
        """
        if n_tokens > self.cfg.n_ctx:
            raise InvalidValueError(
                f"{n_tokens} tokens do not fit the model's context of {self.cfg.n_ctx}; shorten the "
                "text, or ask for fewer new tokens"
            )

    def keep_logits(self, n: int) -> dict[str, int]:
        """Return the keyword that makes a forward pass compute only the last `n` positions' logits.

        Empty for an architecture that has no such keyword and computes all logits.
        """
        known = inspect.signature(self._models[1].original_model.forward).parameters
        return {"logits_to_keep": n} if "logits_to_keep" in known else {}
