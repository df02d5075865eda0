"""Two dictionaries whose features have the same indices, one fine-tuned from the other.

Stage-wise model diffing (Transformer Circuits, 2024) trains a dictionary on the base model, then continues
from its weights on the fine-tuned model; Gemma Scope 2's dictionaries of instruction-tuned models were made
this way. Each feature then has one code per model, from that model's encoder. A crosscoder has one code for
both models, so no crosscoder has these weights, and this module does not build one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from diffsae_lens._checks import check_count
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._decoding import decoder_rows
from diffsae_lens.dictionaries._fits import check_weights_once
from diffsae_lens.dictionaries._record import DictionaryRecord

_N_COMPARED = 512
_LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedDictionaries:
    """A dictionary of the base and one of the fine-tuned model with the same features, compared."""

    base: SAE
    finetuned: SAE
    decoder_cosine: Float[Tensor, "d_sae"]
    """Cosine between a feature's two decoder rows; 1 for a feature that fine-tuning left alone."""
    encoder_cosine: Float[Tensor, "d_sae"]
    """Cosine between a feature's two encoder columns."""
    decoder_norm_ratio: Float[Tensor, "d_sae"]
    """Norm of a feature's fine-tuned decoder row over that of its base row."""
    own_index_share: float
    """Share of features whose nearest decoder row in the other dictionary has the same index (chance:
    1 / d_sae). Near 1, the same index means the same feature."""

    def most_changed(self, n: int) -> list[int]:
        """Return the `n` features whose decoder row turned most, largest change first.

        Raises:
            TypeError, ValueError: `n` is not a count of features.
        """
        n = check_count("n", n, at_most=len(self.decoder_cosine))
        return self.decoder_cosine.nan_to_num(2.0).argsort(stable=True)[:n].tolist()

    @torch.no_grad()
    def code_differences(
        self, value: Float[Tensor, "*row two_d_model"]
    ) -> Float[Tensor, "*row d_sae"]:
        """Return the fine-tuned model's codes minus the base's, for a value of `<site>.concat`."""
        d_model = self.base.cfg.d_in
        if value.shape[-1] != 2 * d_model:
            raise InvalidValueError(
                f"`value` must be {2 * d_model} wide, [base ; finetuned], got {value.shape[-1]}; read "
                "`<site>.concat`"
            )
        base, finetuned = value.split(d_model, dim=-1)
        return self.finetuned.encode(finetuned) - self.base.encode(base)

    def to_frame(self) -> Any:
        """Return one row per feature, as a data frame."""
        import pandas as pd

        names = ("decoder_cosine", "encoder_cosine", "decoder_norm_ratio")
        columns = {name: getattr(self, name).cpu().numpy() for name in names}
        return pd.DataFrame(columns).rename_axis("feature")


@typed
@torch.no_grad()
def aligned(base: SAE, finetuned: SAE) -> AlignedDictionaries:
    """Compare a dictionary with one that was fine-tuned from it, feature by feature.

    Args:
        base: a dictionary of the base model; if its record names a view, `<site>.base`.
        finetuned: a dictionary of the fine-tuned model; if its record names a view, `<site>.finetuned`.

    Returns:
        Per-feature comparisons; `code_differences` compares the codes on a pair's activations.

    Raises:
        ValueError: different widths or sites, or indices that do not correspond.

    Examples:
        >>> compared = aligned(pretrained, instruction_tuned)                # doctest: +SKIP
        >>> compared.most_changed(10)                                        # doctest: +SKIP
    """
    for name, sae in (("base", base), ("finetuned", finetuned)):
        check_weights_once(sae)
        record = DictionaryRecord.of(sae)
        if record.view not in (None, name):
            raise InvalidValueError(
                f"`{name}` must read `<site>.{name}`, got one of {record.hook_name!r}"
            )
    shapes = [(sae.cfg.d_in, sae.cfg.d_sae) for sae in (base, finetuned)]
    sites = [hook.site for sae in (base, finetuned) if (hook := DictionaryRecord.of(sae).hook)]
    if shapes[0] != shapes[1] or len(set(sites)) > 1:
        raise InvalidValueError(
            "`base` and `finetuned` must have the same widths (d_in, d_sae) and site, got "
            f"{shapes[0]} and {shapes[1]} at {sites}"
        )
    rows = [decoder_rows(sae).float() for sae in (base, finetuned)]
    rows[1] = rows[1].to(rows[0].device)
    share = _own_index_share(*rows)
    if share < _LEAST_SHARE:
        raise InvalidValueError(
            "`base` and `finetuned` must be one fine-tuned from the other, so that a feature has the same "
            f"index in both; the nearest decoder row has the same index for {share:.0%} of the features"
        )
    encoders = [sae.W_enc.detach().float().T.to(rows[0].device) for sae in (base, finetuned)]
    return AlignedDictionaries(
        base=base,
        finetuned=finetuned,
        decoder_cosine=cosine_similarity(*rows, dim=-1),
        encoder_cosine=cosine_similarity(*encoders, dim=-1),
        decoder_norm_ratio=rows[1].norm(dim=-1) / rows[0].norm(dim=-1),
        own_index_share=share,
    )


def _own_index_share(base: Tensor, finetuned: Tensor) -> float:
    """Compute the share over features that write anything, spread evenly over the indices."""
    alive = ((base.norm(dim=-1) > 0) & (finetuned.norm(dim=-1) > 0)).nonzero().flatten()
    index = alive[:: max(1, len(alive) // _N_COMPARED)]
    if not len(index):
        return 0.0
    nearest = (normalize(finetuned[index], dim=-1) @ normalize(base, dim=-1).T).argmax(-1)
    return (nearest == index).float().mean().item()
