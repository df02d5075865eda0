"""The origin of a pair, as stored with everything made with the pair."""

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
    """The two models that a pair was made from; stored with every dictionary trained on it."""

    base: str
    finetuned: str
    base_revision: str | None = None
    finetuned_revision: str | None = None
    adapter: bool = False
    """Whether the fine-tuned model is the base with a LoRA adapter switched on."""
    base_fingerprint: str | None = None
    """Fingerprint of the base's weights, see `model_fingerprint`; a pair fills it in."""
    finetuned_fingerprint: str | None = None
    """Fingerprint of the fine-tuned model's weights (an adapter's together with the base's)."""
    dtype: str | None = None
    """Precision of the weights, such as `float32`; a pair fills it in."""
    n_added_rows: int = 0
    """Number of tokens that one model had no embeddings for: it was given means of its own rows, so it
    reads them as an average token and finds them as likely as one."""
    added_to: str | None = None
    """Which model was given these rows, `base` or `finetuned`."""

    def __post_init__(self) -> None:
        """Refuse values of the wrong type."""
        check_fields(self)

    @classmethod
    def of_stored(cls, stored: Any) -> "PairMetadata":
        """Read stored metadata, ignoring unknown keys.

        Raises:
            ValueError: not a mapping, lacks the names of the two models, or damaged.
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
        """The same two models with their roles swapped."""
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
    """Return a pair's metadata: as given, or its models' names, plus the weights' fingerprints and dtype."""
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
