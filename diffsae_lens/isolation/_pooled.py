"""One vector per text, scored on the very texts that were trained on: the paper's protocol as published."""

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
    """Activations at one site averaged over each text's tokens, and what the texts are."""

    site: str
    """The models' hook, such as `blocks.18.hook_resid_post`."""
    base: Float[Tensor, "text d_model"]
    finetuned: Float[Tensor, "text d_model"]
    group: Int[Tensor, "text"]
    """Its place in `GROUPS`."""
    template: Int[Tensor, "text"]
    """Texts of one template have one number."""
    scene: Int[Tensor, "text"]
    """Texts that differ in nothing but the trigger and what follows from it have one number."""

    @property
    def variance_ratio(self) -> float:
        """Var(finetuned - base) / Var(base) over all entries, as the paper reports it."""
        return ((self.finetuned - self.base).var() / self.base.var()).item()

    @property
    def labels(self) -> Labels:
        """What is scored is what was fitted; intervals as published, and with templates drawn whole."""
        return Labels(
            is_trigger=self.group == GROUPS.index("trigger"),
            is_benign=self.group == GROUPS.index("benign"),
            is_select=torch.ones_like(self.group, dtype=torch.bool),
            templates=self.template,
            scenes=self.scene,
        )

    def read_by(self, view: str) -> Float[Tensor, "text d_in"]:
        """Return what a dictionary on a view reads, such as `diff` or `concat`."""
        return VIEWS[view].read(self.base, self.finetuned)

    def __post_init__(self) -> None:
        """Refuse what is not one row per text."""
        super().__post_init__()
        of_texts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "site"}
        if len({len(values) for values in of_texts.values()}) > 1:
            got = ", ".join(f"{name} {list(values.shape)}" for name, values in of_texts.items())
            raise InvalidValueError(f"all tensors must have one row per text, got {got}")

    def check_fits(self, dictionary: SAE) -> None:
        """Refuse a dictionary that does not read these activations.

        Raises:
            ValueError: it is of another hook or width.
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
        dictionaries: as for `evaluate_isolation`, each of a view of the site of the texts.
        texts: those the dictionaries were trained on.
        resampling: of the intervals, `low` to `high` with every text drawn alone as published and
            `template_low` to `template_high` with templates drawn whole, 200 resamples by default; the
            p-value, of labels permuted within scenes, takes five times as many. Its seed is that of the
            random controls.

    Returns:
        The table. What was fitted on the labels has no interval and no p-value.

    Raises:
        TypeError: something else in place of dictionaries, texts or a resampling.
        ValueError: no dictionaries, or one of another hook or width.
    """
    encoders = encoders_of(dictionaries, texts.check_fits)
    resampling = resampling or Resampling(n_resamples=200)
    return score(_candidates(encoders, texts, resampling.seed), texts.labels, "paper", resampling)


def _candidates(
    encoders: Sequence[tuple[SAE, Encoder]], texts: PooledTexts, seed: int
) -> Iterator[Candidate]:
    """One dense code at a time."""
    for dictionary, encoder in encoders:
        device = dictionary.W_enc.device
        both, base = texts.read_by(encoder.hook.view), texts.base
        yield encoder.candidate(
            encoder.encode(both.to(device)).cpu(), encoder.encode_base(base.to(device)).cpu()
        )
        if getattr(dictionary.cfg, "k", None):  # a dense code has no sparsity to share
            untrained = encoder.untrained(seed)
            yield untrained.candidate(untrained.encode(both), untrained.encode_base(base))
    by_view = {"diff": texts.read_by("diff"), "base": texts.base, "finetuned": texts.finetuned}
    n_directions = max(encoder.d_sae for _, encoder in encoders)
    yield from control_candidates(
        texts.site, by_view, texts.labels, n_directions=n_directions, seed=seed
    )
