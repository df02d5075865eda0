"""One vector per text, scored on the training texts themselves: the paper's protocol as published."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Checked, typed
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.isolation._labels import Labels
from diffsae_lens.isolation._score import score
from diffsae_lens.isolation._sources import Candidate, Encoder, control_candidates, encoders_of
from diffsae_lens.isolation._table import IsolationTable
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.organisms._behaviour import GROUPS
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._views import VIEWS


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledTexts(Checked):
    """Activations at one site averaged over each text's tokens, with the texts' labels."""

    site: str
    """The models' hook point, such as `blocks.18.hook_resid_post`."""
    base: Float[Tensor, "text d_model"]
    finetuned: Float[Tensor, "text d_model"]
    group: Int[Tensor, "text"]
    """Index of the text's group in `GROUPS`."""
    template: Int[Tensor, "text"]
    """Number of the text's template."""
    scene: Int[Tensor, "text"]
    """Number of the text's scene; texts of one scene differ only in the trigger and what follows from it."""

    @property
    def variance_ratio(self) -> float:
        """Var(finetuned - base) / Var(base) over all entries, as the paper reports it."""
        return ((self.finetuned - self.base).var() / self.base.var()).item()

    @property
    def labels(self) -> Labels:
        """Labels for scoring on the fitted texts, with intervals as published and with whole templates."""
        return Labels(
            is_trigger=self.group == GROUPS.index("trigger"),
            is_benign=self.group == GROUPS.index("benign"),
            is_select=torch.ones_like(self.group, dtype=torch.bool),
            templates=self.template,
            scenes=self.scene,
        )

    def read_by(self, view: str) -> Float[Tensor, "text d_in"]:
        """Return the activations that a dictionary on a view, such as `diff` or `concat`, reads."""
        return VIEWS[view].read(self.base, self.finetuned)

    def __post_init__(self) -> None:
        """Refuse tensors without one row per text."""
        super().__post_init__()
        of_texts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "site"}
        if len({len(values) for values in of_texts.values()}) > 1:
            got = ", ".join(f"{name} {list(values.shape)}" for name, values in of_texts.items())
            raise InvalidValueError(f"all tensors must have one row per text, got {got}")

    def check_fits(self, dictionary: SAE) -> None:
        """Refuse a dictionary that does not read these activations.

        Raises:
            ValueError: the dictionary is of another hook point or width.
        """
        hook_name = DictionaryRecord.of(dictionary).hook_name or ""
        if hook_name not in {VirtualHook(self.site, view).name for view in VIEWS}:
            raise InvalidValueError(
                f"the dictionary must read a view of {self.site}, where `texts` are from, got {hook_name!r}"
            )
        width = self.read_by(VirtualHook.parse(hook_name).view).shape[1]
        if dictionary.cfg.d_in != width:
            raise InvalidValueError(
                f"the dictionary reads {dictionary.cfg.d_in} wide activations, but {hook_name} of `texts` is "
                f"{width} wide"
            )


@torch.no_grad()
@typed
def evaluate_pooled(
    dictionaries: Mapping[str, SAE | Sequence[SAE]],
    texts: PooledTexts,
    *,
    resampling: Resampling | None = None,
) -> IsolationTable:
    """Score dictionaries and controls on pooled vectors by the paper's protocol.

    Args:
        dictionaries: as for `evaluate_isolation`, each on a view of the texts' site.
        texts: the texts the dictionaries were trained on.
        resampling: resampling for the intervals, 200 resamples by default: `low` to `high` with every text
            drawn alone as published, and `template_low` to `template_high` with templates drawn whole. The
            p-value permutes labels within scenes, five times as often. The random controls share the seed.

    Returns:
        The table. Rows fitted on the labels have no interval and no p-value.

    Raises:
        TypeError: dictionaries, texts or a resampling of another type.
        ValueError: no dictionaries, or one of another hook point or width.
    """
    encoders = encoders_of(dictionaries, texts.check_fits)
    resampling = resampling or Resampling(n_resamples=200)
    return score(_candidates(encoders, texts, resampling.seed), texts.labels, "paper", resampling)


def _candidates(
    encoders: Sequence[tuple[SAE, Encoder]], texts: PooledTexts, seed: int
) -> Iterator[Candidate]:
    """Yield candidates, holding one dense code at a time."""
    for dictionary, encoder in encoders:
        device = dictionary.W_enc.device
        both, base = texts.read_by(encoder.hook.view), texts.base
        yield encoder.candidate(
            encoder.encode(both.to(device)).cpu(), encoder.encode_base(base.to(device)).cpu()
        )
        if getattr(dictionary.cfg, "k", None):  # a dense code has no sparsity to match
            untrained = encoder.untrained(seed)
            yield untrained.candidate(untrained.encode(both), untrained.encode_base(base))
    by_view = {"diff": texts.read_by("diff"), "base": texts.base, "finetuned": texts.finetuned}
    n_directions = max(encoder.d_sae for _, encoder in encoders)
    yield from control_candidates(
        texts.site, by_view, texts.labels, n_directions=n_directions, seed=seed
    )
