"""Which tokens a dictionary was trained on: the others it neither reads nor edits.

The first token's activation is 10 to 1000 times the others', special tokens stand for no text, and
padding for nothing. A harvest leaves them out, so what a dictionary makes of them is noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_count


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """The tokens that count for a dictionary: in what is read, edited, averaged and scored."""

    skip_positions: int = 0
    """Leading tokens of a text that do not count, padding aside."""
    ignored_token_ids: tuple[int, ...] = ()
    """Tokens that count nowhere: special and padding tokens."""

    def __post_init__(self) -> None:
        """Refuse what is not a count and ids."""
        check_count("skip_positions", self.skip_positions, at_least=0)
        for token in self.ignored_token_ids:
            check_count("ignored_token_ids", token, at_least=0)

    @property
    def counts_all(self) -> bool:
        """Whether all tokens but padding count."""
        return self.skip_positions == 0 and not self.ignored_token_ids

    def counted(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "_ pos"]
    ) -> Bool[Tensor, "_ pos"]:
        """Return which tokens count.

        Args:
            tokens: ids, on any device.
            positions: how many tokens of its row stand before each, -1 for padding: `pair.positions`
                or `positions_of`; one row if they are the same for all.
        """
        counted = positions >= self.skip_positions
        counted &= positions >= 0
        if self.ignored_token_ids:
            ignored = torch.tensor(self.ignored_token_ids, device=tokens.device)
            counted = counted & ~torch.isin(tokens, ignored).to(counted.device)
        return counted

    def and_ignoring(self, token_ids: Iterable[int]) -> "TokenPolicy":
        """Return the policy with further tokens that do not count."""
        ignored = sorted({*self.ignored_token_ids, *token_ids})
        return TokenPolicy(skip_positions=self.skip_positions, ignored_token_ids=tuple(ignored))


EVERY_TOKEN = TokenPolicy()
"""That of a dictionary whose metadata do not say: all tokens but padding count."""


def positions_of(attended: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Return how many tokens of its row stand before each token; -1 for padding.

    Examples:
        >>> positions_of(torch.tensor([[False, True, True]])).tolist()
        [[-1, 0, 1]]
    """
    return (attended.long().cumsum(1) - 1).masked_fill(~attended, -1)


def token_policy(dictionary: SAE) -> TokenPolicy:
    """Return which tokens count for a dictionary, by `metadata.diffsae_lens` in its config.

    All of them where the metadata do not say: nothing is skipped and nothing ignored.

    Raises:
        TypeError: the metadata hold something that is not a count or ids.
        ValueError: a negative one.
    """
    stored = dictionary.cfg.metadata.diffsae_lens or {}
    return TokenPolicy(
        skip_positions=stored.get("skip_positions", 0),
        ignored_token_ids=tuple(stored.get("ignored_token_ids") or ()),
    )


def shared_policy(dictionaries: Iterable[SAE]) -> TokenPolicy:
    """Return where a control of several dictionaries acts: on every token that any of them acts on."""
    policies = [token_policy(dictionary) for dictionary in dictionaries]
    if not policies:
        return EVERY_TOKEN
    ignored = set.intersection(*(set(policy.ignored_token_ids) for policy in policies))
    return TokenPolicy(
        skip_positions=min(policy.skip_positions for policy in policies),
        ignored_token_ids=tuple(sorted(ignored)),
    )


def skip_positions(dictionary: SAE) -> int:
    """Return how many leading tokens a dictionary was not trained on; 0 if its metadata do not say."""
    return token_policy(dictionary).skip_positions
