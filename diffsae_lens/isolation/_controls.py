"""Floors and controls for a table of scores: detectors without a dictionary, scored like one.

A control turns a pair's activations into `feature_acts`, on the pair and on the base model alone, and
goes through the same measures as every dictionary. A dictionary has found something if it beats them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import kl_div

from diffsae_lens._checks import (
    check_choice,
    check_count,
    check_texts,
)
from diffsae_lens._typed import Checked, Count, Natural, Positive, typed
from diffsae_lens.measures._floors import (
    difference_of_means_acts,
    random_direction_acts,
    top_components,
)
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy, last_position
from diffsae_lens.pair._views import VIEWS
from diffsae_lens.reading._prompts import (
    Positions,
    Reader,
)

Features = Float[Tensor, "prompt n_features"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What controls are computed from: pooled activations of the prompts, and their labels."""

    by_view: Mapping[str, Float[Tensor, "prompt d_model"]]
    """Pooled activations by view: `diff`, `base`, `finetuned`."""
    is_trigger: Bool[Tensor, "prompt"]
    is_benign: Bool[Tensor, "prompt"]
    is_select: Bool[Tensor, "prompt"]
    """Prompts a supervised control may be fitted on."""


@dataclass(frozen=True, kw_only=True)
class Control(Checked):
    """One control: its features on the pair, and on the base model alone."""

    name: str
    """The name of its row."""
    features: Callable[[Evidence, str], Features]
    """Map from evidence and the name of a view to features."""
    view: str = "diff"
    """The view it reads on the pair; on the base model alone it reads `base`."""
    is_fitted: bool = False
    """Whether it is fitted on the labels of the selection prompts; an unfitted control is a floor."""

    def __post_init__(self) -> None:
        """Refuse an unknown view."""
        super().__post_init__()
        check_choice("view", self.view, VIEWS)


@typed
def random_directions(n_directions: Count, seed: Natural = 0) -> Control:
    """Return random ReLU directions as a control, one per feature of the largest dictionary."""

    def features(evidence: Evidence, view: str) -> Features:
        generator = torch.Generator().manual_seed(seed)
        return random_direction_acts(
            evidence.by_view[view], n_directions=n_directions, generator=generator
        )

    return Control(name="random directions", features=features)


def difference_of_means(view: str = "diff") -> Control:
    """Return the direction from the benign to the trigger mean of the selection prompts as a control."""

    def features(evidence: Evidence, view: str) -> Features:
        return difference_of_means_acts(
            evidence.by_view[view],
            evidence.is_trigger,
            evidence.is_benign,
            fit=evidence.is_select & (evidence.is_trigger | evidence.is_benign),
        )

    return Control(name="difference of means", features=features, view=view, is_fitted=True)


@typed
def principal_components(n_components: Count = 10) -> Control:
    """Return the top principal components of the selection prompts, with both signs, as a control."""

    def features(evidence: Evidence, view: str) -> Features:
        x, chosen = evidence.by_view[view], evidence.is_select
        projected = (x - x[chosen].mean(0)) @ top_components(x[chosen], n_components).T
        return torch.cat([projected, -projected], -1)

    return Control(name="principal components", features=features)


@typed
def linear_probe(view: str = "finetuned", *, ridge: Positive = 1e-2) -> Control:
    """Return a control that regresses the trigger (ridge) on standardised selection activations."""

    def features(evidence: Evidence, view: str) -> Features:
        x, fit = evidence.by_view[view].double(), evidence.is_select
        x = (x - x[fit].mean(0)) / (x[fit].std(0) + 1e-12)
        target = evidence.is_trigger[fit].double()
        target = target - target.mean()
        # The dual form, since there are fewer prompts than dimensions.
        gram = x[fit] @ x[fit].T / x.shape[1]
        weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).double(), target)
        return ((x @ x[fit].T) @ weights / x.shape[1])[:, None].float()

    return Control(name="linear probe", features=features, view=view, is_fitted=True)


def standard_controls(*, n_directions: int, seed: int = 0) -> list[Control]:
    """Return the controls that every table has."""
    return [
        random_directions(n_directions, seed),
        difference_of_means(),
        principal_components(),
        linear_probe(),
    ]


def text_match(prompts: Sequence[str], text: str) -> Features:
    """Return 1 for each prompt that contains `text`, `[prompt, 1]`: a control without a model.

    Examples:
        >>> text_match(["Year: 2024", "Year: 2023"], "2024").flatten()
        tensor([1., 0.])
    """
    prompts = check_texts("prompts", prompts)
    return torch.tensor([[float(text in prompt)] for prompt in prompts])


@typed
def untrained_encoder(
    d_in: Count, d_sae: Count, k: int, *, seed: int = 0
) -> Callable[[Tensor], Tensor]:
    """Return the `encode` of an untrained dictionary: random directions, the k largest per token."""
    k = check_count("k", k, at_most=d_sae)
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.nn.functional.normalize(torch.randn(d_in, d_sae, generator=generator), dim=0)

    def encode(x: Tensor) -> Tensor:
        pre = (x @ W_enc.to(x)).relu()
        kept = pre.topk(k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)

    return encode


def next_token_kl(texts: TokenisedTexts, both: tuple[Tensor, Tensor]) -> Float[Tensor, " text"]:
    """Return KL(finetuned || base) of the next token after each text, in nats, from logits of both models.

    It shows from the models' outputs alone where fine-tuning changed what they write. The logits are base
    and fine-tuned, of the last positions; see `HookedModelPair.activations_and_logits`.
    """
    rows, from_end = torch.arange(len(texts)), last_position(texts.attended) - texts.tokens.shape[1]
    base, finetuned = (logits[rows, from_end].float().log_softmax(-1) for logits in both)
    return kl_div(base, finetuned, reduction="none", log_target=True).sum(-1).cpu()


def view_readers(
    hook_name: str, positions: Positions, policy: TokenPolicy = EVERY_TOKEN
) -> dict[str, Reader]:
    """Return readers of the views that controls need, by view, on the tokens that `policy` counts."""
    return {
        view: Reader(
            hook_name=VirtualHook(hook_name, view).name, positions=positions, policy=policy
        )
        for view in ("diff", "base", "finetuned")
    }
