"""Conversations as inputs in place of texts: rendered once by the tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffsae_lens import _checks
from diffsae_lens._errors import InvalidTypeError, InvalidValueError

Messages = Sequence[Mapping[str, Any]]
"""A conversation: `[{"role": "user", "content": "..."}, ...]`."""
Text = str | Messages
"""What a pair reads: a plain text or a conversation."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A text as a pair reads it."""

    text: str
    content_end: int | None
    """Characters up to the end of the last message's content, without the template's text after it; None
    if the template changed the content, so that its end is unknown."""


def is_conversation(value: Any) -> bool:
    """Return whether a value is a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and len(value) > 0
        and all(isinstance(message, Mapping) for message in value)
    )


def rendered(
    name: str, texts: Any, tokenizer: PreTrainedTokenizerBase, *, to_be_continued: bool
) -> list[Rendered]:
    """Return texts unchanged, and conversations rendered with the chat template.

    Args:
        name: the name of the argument, for messages.
        texts: a list of texts and conversations.
        tokenizer: the tokenizer whose template is applied.
        to_be_continued: whether the model continues the text: if so, a last message from the assistant is
            left open. A last message from anyone else is followed by the beginning of an answer.

    Raises:
        TypeError: a single text or conversation, or not a list of them.
        ValueError: an empty list; a message without role and content; no chat template, or one that
            raises.
    """
    if is_conversation(texts):
        got = (
            "a single conversation; put it in a list"
            if "role" in texts[0]
            else f"{_checks.shown(dict(texts[0]))} at 0, which is no message; give lists of messages"
        )
        raise InvalidTypeError(f"`{name}` must be a list of texts or conversations, got {got}")
    if isinstance(texts, Sequence) and not isinstance(texts, str | bytes):
        plain = [_checks.shown(t) if is_conversation(t) else t for t in texts]
    else:
        plain = texts = (
            texts if isinstance(texts, str | bytes) else _checks.check_texts(name, texts)
        )
    _checks.check_texts(name, plain)
    return [
        _applied(f"{name}[{i}]", text, tokenizer, to_be_continued)
        if is_conversation(text)
        else Rendered(text=text, content_end=_without_special(text, tokenizer))
        for i, text in enumerate(texts)
    ]


def _without_special(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length of a text in characters, without special tokens at its end."""
    special = [str(token) for token in special_tokens(tokenizer).values()]
    while ends := [token for token in special if text.endswith(token)]:
        text = text[: -len(max(ends, key=len))]
    return len(text)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special tokens, which represent no text, by id."""
    marked = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return marked | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _applied(
    name: str, messages: Messages, tokenizer: PreTrainedTokenizerBase, to_be_continued: bool
) -> Rendered:
    for message in messages:
        if not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InvalidValueError(
                f"`{name}` must be messages with a `role` and a `content`, both texts, got "
                f"{_checks.shown(dict(message))}"
            )
    if tokenizer.chat_template is None:
        raise InvalidValueError(
            f"`{name}` is a conversation, but the tokenizer has no chat template; take the chat model's "
            "with `load_pair(..., tokenizer='finetuned')`, set `pair.tokenizer.chat_template`, or give "
            "texts"
        )
    of_assistant = messages[-1]["role"] == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not of_assistant,
            continue_final_message=of_assistant and to_be_continued,
        )
    except ImportError as error:
        raise InvalidValueError(
            f"a chat template needs a package that is not here: {error}"
        ) from error
    except Exception as error:  # a template may raise anything
        raise InvalidValueError(f"the chat template refuses `{name}`: {error}") from error
    content = str(messages[-1]["content"]).strip()
    at = str(text).rfind(content)
    end = None if at < 0 or not content else at + len(content)
    return Rendered(text=str(text), content_end=end)
