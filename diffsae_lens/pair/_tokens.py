"""Which tokens count: one policy for what is read, edited, averaged and scored.

The first token's activation is 10 to 1000 times the others'; special tokens and padding represent no
text. A harvest leaves them out, so a dictionary's output on them is noise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffsae_lens._checks import check_count
from diffsae_lens._typed import check_fields


@dataclass(frozen=True, kw_only=True)
class TokenPolicy:
    """The tokens that count for a dictionary: in what is read, edited, averaged and scored."""

    skip_positions: int = 0
    """Number of leading tokens of a text that do not count, not including padding."""
    ignored_token_ids: tuple[int, ...] = ()
    """Tokens that never count: special and padding tokens."""

    def __post_init__(self) -> None:
        """Refuse invalid counts and ids."""
        check_fields(self)
        check_count("skip_positions", self.skip_positions, at_least=0)
        for token in self.ignored_token_ids:
            check_count("ignored_token_ids", token, at_least=0)

    @classmethod
    def any_of(cls, policies: Iterable["TokenPolicy"]) -> "TokenPolicy":
        """Return the policy by which a token counts if any of these count it; every token if none given."""
        policies = list(policies)
        if not policies:
            return EVERY_TOKEN
        ignored = set.intersection(*(set(policy.ignored_token_ids) for policy in policies))
        return cls(
            skip_positions=min(policy.skip_positions for policy in policies),
            ignored_token_ids=tuple(sorted(ignored)),
        )

    @classmethod
    def all_of(cls, policies: Iterable["TokenPolicy"]) -> "TokenPolicy":
        """Return the policy by which a token counts if all of these count it."""
        policies = list(policies)
        return cls(
            skip_positions=max((policy.skip_positions for policy in policies), default=0),
            ignored_token_ids=tuple(sorted({i for p in policies for i in p.ignored_token_ids})),
        )

    def counted(
        self, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, "_ pos"]
    ) -> Bool[Tensor, "_ pos"]:
        """Return which tokens count.

        Args:
            tokens: token ids, on any device.
            positions: number of tokens that precede each token in its row, -1 for padding, from
                `pair.positions` or `positions_of`; a single row if it is the same for all.
        """
        counted = positions >= self.skip_positions
        counted &= positions >= 0
        if self.ignored_token_ids:
            ignored = torch.tensor(self.ignored_token_ids, device=tokens.device)
            counted = counted & ~torch.isin(tokens, ignored).to(counted.device)
        return counted

    def and_ignoring(self, token_ids: Iterable[int]) -> "TokenPolicy":
        """Return the policy with additional ignored tokens."""
        return TokenPolicy.all_of([self, TokenPolicy(ignored_token_ids=tuple(token_ids))])


EVERY_TOKEN = TokenPolicy()
"""All tokens but padding count: the policy of a dictionary whose record does not say."""


def positions_of(attended: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Return the number of tokens that precede each token in its row; -1 for padding.

    Examples:
        >>> positions_of(torch.tensor([[False, True, True]])).tolist()
        [[-1, 0, 1]]
    """
    return (attended.long().cumsum(1) - 1).masked_fill(~attended, -1)


def last_position(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Return the index of the last True in each row (0 if there is none)."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
