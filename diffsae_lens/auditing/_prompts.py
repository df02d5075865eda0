"""The auditor's texts: which part of each may be edited, and what a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.auditing._config import MIN_TEXTS
from diffsae_lens.pair._chat import Text, rendered


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text whose content can be edited within what a chat template puts around it."""

    content: str
    before: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        """What a model reads."""
        return self.before + self.content + self.after

    def saying(self, content: str) -> "Prompt":
        """Return the prompt with other content."""
        return replace(self, content=content)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The texts of an audit, without repeats."""

    prompts: tuple[Prompt, ...]
    n_repeated: int
    """Number of texts left out as repeats."""
    n_cut: int
    """Number of texts whose end was left out."""

    @property
    def texts(self) -> list[str]:
        """What a model reads."""
        return [prompt.text for prompt in self.prompts]


def read_texts(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> Prompts:
    """Make prompts from texts, documents and conversations.

    Args:
        texts: the texts; the last message of a conversation may be edited, and the model answers it.
        tokenizer: tokenizer whose chat template is applied.
        n_tokens: number of tokens at which contents are cut.

    Raises:
        TypeError: `texts` is not a list of texts and conversations.
        ValueError: there are too few texts or too many repeats, or one is empty.
    """
    read = rendered("texts", texts, tokenizer, to_be_continued=True)
    prompts = []
    for given, one in zip(texts, read, strict=True):
        if isinstance(given, str):
            prompts.append(Prompt(content=given))
            continue
        content = str(given[-1]["content"]).strip()
        end = one.content_end
        if end is None:
            raise InvalidValueError(
                "the chat template changes what is said, so that nothing can be put into it; give "
                "texts instead of conversations"
            )
        start = end - len(content)
        prompts.append(Prompt(before=one.text[:start], content=content, after=one.text[end:]))
    if empty := [i for i, prompt in enumerate(prompts) if not prompt.content.strip()]:
        raise InvalidValueError(f"`texts`[{empty[0]}] is empty; leave it out")
    cut = [_cut(prompt, tokenizer, n_tokens) for prompt in prompts]
    distinct = tuple(dict.fromkeys(cut))
    if len(distinct) < MIN_TEXTS:
        alike = (
            f", {len(prompts) - len(distinct)} of them repeated"
            if len(distinct) < len(prompts)
            else ""
        )
        raise InvalidValueError(
            f"`texts` must be at least {MIN_TEXTS} different texts, got {len(prompts)}{alike}; a verdict "
            "on something that is in one text of a hundred needs 400 or more"
        )
    return Prompts(
        prompts=distinct,
        n_repeated=len(cut) - len(distinct),
        n_cut=sum(a != b for a, b in zip(prompts, cut, strict=True)),
    )


def _cut(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> Prompt:
    if len(prompt.content) <= n_tokens:  # a token has at least one character
        return prompt
    spans = tokenizer(
        prompt.content, add_special_tokens=False, return_offsets_mapping=True
    ).offset_mapping
    return (
        prompt
        if len(spans) <= n_tokens
        else prompt.saying(prompt.content[: spans[n_tokens - 1][1]])
    )
