"""Features token by token on a few texts, to read by eye."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._display import tokens_html
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import FeatureIndices, check_features, check_fits
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.results import FeatureExample


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenActivations:
    """Activations of features on every token of some texts; shown as coloured text in a notebook."""

    features: tuple[int, ...]
    tokens: tuple[tuple[str, ...], ...]
    """The tokens of each text, decoded one at a time."""
    activations: tuple[Float[Tensor, "_ feature"], ...] = field(repr=False)
    """The activations on each text, [pos, feature]."""

    def frame(self) -> pd.DataFrame:
        """Return one row per token: `text`, `position`, `token`, and one column per feature."""
        rows = [
            {"text": i, "position": j, "token": token}
            | dict(zip(map(str, self.features), values, strict=True))
            for i, (tokens, acts) in enumerate(zip(self.tokens, self.activations, strict=True))
            for j, (token, values) in enumerate(zip(tokens, acts.tolist(), strict=True))
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Show all texts of a feature on one scale."""
        blocks = []
        for column, feature in enumerate(self.features):
            values = [acts[:, column].tolist() for acts in self.activations]
            peak = max(max(row) for row in values)
            blocks.append(f"<p><b>feature {feature}</b>, at most {peak:.3g}</p>")
            blocks += [
                tokens_html(tokens, row, peak)
                for tokens, row in zip(self.tokens, values, strict=True)
            ]
        return "".join(blocks)


@torch.no_grad()
@typed
def token_activations(
    pair: HookedModelPair, dictionary: SAE, features: FeatureIndices, texts: Sequence[Text]
) -> TokenActivations:
    """Read features on every token of a few texts, for inspection.

    Unlike the rest of the library it also reads tokens that the dictionary was not trained on (leading and
    special ones), since they are part of the text; the activations on them are noise.

    Args:
        pair: the two models.
        dictionary: trained on one of the pair's hook points.
        features: indices of the features.
        texts: a few texts or conversations, read one at a time.

    Returns:
        The activations, shown as coloured text in a notebook.

    Raises:
        TypeError: features that are not integers, or `texts` that are not a list of texts.
        ValueError: no texts or features, a text that is empty or beyond the context, a feature that does
            not exist, or another pair's dictionary.
    """
    hook = check_fits(pair, dictionary)
    indices = check_features(dictionary, features, allow_empty=False)
    read = pair.tokenise(texts)
    all_tokens, activations = [], []
    for i in range(len(read)):
        text = read.take([i])
        codes = dictionary.encode(pair.activations(text, hook)[hook.name])[0]
        activations.append(codes[:, indices].float().cpu())
        all_tokens.append(tuple(str(pair.tokenizer.decode([t])) for t in text.tokens[0].tolist()))
    return TokenActivations(
        features=tuple(indices), tokens=tuple(all_tokens), activations=tuple(activations)
    )


def example_at(
    tokens: Sequence[str],
    values: Float[Tensor, "pos"],
    at: int,
    *,
    context: int,
    group: str = "text",
    start: int = 0,
) -> FeatureExample:
    """Cut out the tokens around a position, at most `context` on either side and none before `start`."""
    part = slice(max(start, at - context), at + context + 1)
    return FeatureExample(
        group=group,
        start=part.start,
        tokens=list(tokens[part]),
        activations=values[part].tolist(),
    )


@torch.no_grad()
def token_codes(
    pair: HookedModelPair, dictionary: SAE, texts: TokenisedTexts
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """Yield the codes of every token that counts for a dictionary, in batches of tokens, on the CPU."""
    hook, policy = check_fits(pair, dictionary), DictionaryRecord.of(dictionary).tokens
    for _, batch in texts.batches(16, "reading features"):
        value = pair.activations(batch, hook)[hook.name]
        counted = policy.counted(batch.tokens, batch.positions).to(pair.device)
        yield dictionary.encode(value[counted]).float().cpu()
