"""Texts whose tokens are coloured by a feature's activation: the minimal pair and feature cards."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffsae_lens._display import TOKEN_LIMIT, cut, shown_tokens
from diffsae_lens.reporting._lookup import said_text
from diffsae_lens.reporting._style import css_colour, dictionary_colours, needs_light_ink, tint
from diffsae_lens.reporting._token_figure import example_prompts
from diffsae_lens.results import FeatureCard, FeatureExample
from diffsae_lens.study._results import Results

TOKENS_LIMIT = 8_000
"""Maximum number of characters shown token by token: each token is an element of the page."""


def coloured_prompts(results: Results) -> list[dict[str, Any]]:
    """Return the minimal pair's tokens with their values, for each dictionary."""
    prompts, names = example_prompts(results)
    colours = dictionary_colours(results.dictionaries)
    out = []
    for name in names:
        peak = max((max(p.activations[name], default=0.0) for p in prompts), default=0.0)
        blocks = []
        for prompt in prompts:
            tokens, values = prompt.tokens, prompt.activations[name]
            strongest = sorted(range(len(tokens)), key=lambda i: -values[i])[:3]
            blocks.append(
                {
                    "said": said_text(prompt.said),
                    "spans": _spans(colours[name], tokens, values, peak),
                    "strongest": [
                        (i, repr(cut(tokens[i], TOKEN_LIMIT)), values[i])
                        for i in strongest
                        if values[i] > 0
                    ],
                }
            )
        out.append({"name": name, "colour": css_colour(colours[name]), "prompts": blocks})
    return out


def card_context(card: FeatureCard, colours: Mapping[str, str]) -> dict[str, Any]:
    """Return a feature with its histograms as heights and its examples as coloured tokens."""
    colour = colours[card.dictionary]
    tallest = max((share for shares in card.histogram.values() for share in shares), default=0.0)
    examples = [FeatureExample.from_dict(example) for example in card.examples]
    return {
        "row": card,
        "colour": css_colour(colour),
        "bars": {
            group: {
                "heights": [f"{100 * share / (tallest or 1.0):.1f}" for share in shares],
                "active": sum(shares),
            }
            for group, shares in card.histogram.items()
        },
        "blocks": [
            {
                "group": e.group,
                "spans": _spans(colour, e.tokens, e.activations, card.maximum, start=e.start),
            }
            for e in examples
        ],
    }


def _spans(
    colour: str, tokens: Sequence[str], values: Sequence[float], peak: float, *, start: int = 0
) -> list[dict[str, Any]]:
    """Return tokens with the strength of their background; the first is token `start` of its text."""
    pairs = list(zip(tokens, values, strict=True))
    spans = []
    for i, text in shown_tokens(tokens, limit=TOKENS_LIMIT):
        token, value = ("", 0.0) if i is None else pairs[i]
        share = min(max(value / peak, 0.0), 1.0) if peak > 0 else 0.0
        title = "" if i is None else f"token {start + i} {cut(token, TOKEN_LIMIT)!r}: {value:.3f}"
        spans.append(
            {
                "text": text.replace("\n", "↵\n"),
                "title": title,
                "share": f"{share:.3f}",
                "light": needs_light_ink(tint(colour, share)),
            }
        )
    return spans
