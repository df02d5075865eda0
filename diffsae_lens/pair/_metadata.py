"""What a pair was made of, as it is stored with everything that was made with the pair."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens._typed import check_fields
from diffsae_lens.pair._adapters import AdapterSwitch
from diffsae_lens.pair._fingerprint import pair_fingerprints


@dataclass(frozen=True, kw_only=True)
class PairMetadata:
    """Which two models a pair was made of; stored with every dictionary trained on it."""

    base: str
    finetuned: str
    base_revision: str | None = None
    finetuned_revision: str | None = None
    adapter: bool = False
    """Whether the fine-tuned model is the base with a LoRA adapter switched on."""
    base_fingerprint: str | None = None
    """Of its weights, see `model_fingerprint`; a pair fills it in."""
    finetuned_fingerprint: str | None = None
    """Likewise; of an adapter's weights together with the base's."""
    dtype: str | None = None
    """Precision of the weights, such as `float32`; a pair fills it in."""
    n_added_rows: int = 0
    """Tokens that one model had no embeddings for: it was given means of its own rows, so it reads them
    as an average token and finds them as likely."""
    added_to: str | None = None
    """Which model was given them, `base` or `finetuned`."""

    def __post_init__(self) -> None:
        """Refuse what is not a text or a flag."""
        check_fields(self)

    @classmethod
    def of_stored(cls, stored: Any) -> "PairMetadata":
        """Read what was stored; keys that are not known are left out.

        Raises:
            ValueError: not a mapping, without the names of the two models, or damaged.
        """
        named = isinstance(stored, Mapping) and all(
            isinstance(stored.get(side), str) for side in ("base", "finetuned")
        )
        if not named:
            raise InvalidValueError(
                f"the record of a pair must name its `base` and `finetuned`, got {shown(stored)}; it is "
                "damaged: get or train the dictionary again"
            )
        try:
            return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})
        except InvalidTypeError as error:
            raise InvalidValueError(
                f"the record of a pair is damaged ({error}): get or train the dictionary again"
            ) from error

    @property
    def mirrored(self) -> "PairMetadata":
        """The same two models with their roles changed."""
        return PairMetadata(
            base=self.finetuned,
            finetuned=self.base,
            base_revision=self.finetuned_revision,
            finetuned_revision=self.base_revision,
            adapter=self.adapter,
            base_fingerprint=self.finetuned_fingerprint,
            finetuned_fingerprint=self.base_fingerprint,
            dtype=self.dtype,
            n_added_rows=self.n_added_rows,
            added_to=self.added_to and {"base": "finetuned", "finetuned": "base"}[self.added_to],
        )


def describe_pair(
    base: TransformerBridge,
    finetuned: TransformerBridge,
    adapters: AdapterSwitch,
    given: PairMetadata | None,
) -> PairMetadata:
    """Return a pair's metadata: what is given, else its models' names; and what the weights are."""
    given = given or PairMetadata(
        base=str(base.cfg.model_name),
        finetuned=str(finetuned.cfg.model_name),
        adapter=adapters.model is not None,
    )
    of_base, of_finetuned = pair_fingerprints(
        base.original_model, finetuned.original_model, adapters.model, adapters.names
    )
    dtype = str(next(finetuned.original_model.parameters()).dtype).removeprefix("torch.")
    return replace(given, base_fingerprint=of_base, finetuned_fingerprint=of_finetuned, dtype=dtype)
