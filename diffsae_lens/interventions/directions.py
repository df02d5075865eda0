"""Directions that need no dictionary: the controls of equal size for a set of features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens.evaluation.activations import Reader, read_prompts
from diffsae_lens.organisms.prompts import Sample
from diffsae_lens.pair import HookedModelPair


def control_directions(
    pair: HookedModelPair,
    hook_name: str,
    samples: Sequence[Sample],
    *,
    n_directions: int,
    seed: int = 0,
) -> dict[str, Float[Tensor, "n d_model"]]:
    """Return directions of the difference to take out with `project_out`, as many as features.

    Args:
        pair: the two models.
        hook_name: the models' own name, such as `blocks.18.hook_resid_post`.
        samples: trigger and benign prompts the directions are fitted on, read where the organism
            decides; report on others.
        n_directions: how many random directions and principal components.
        seed: of the random directions.

    Returns:
        `random directions` and `principal components` `[n_directions, d_model]`, and `difference of
        means` between trigger and benign prompts `[1, d_model]`, all of unit length.

    Raises:
        ValueError: no trigger or no benign samples, fewer samples than components, or an unknown hook.
    """
    reader = Reader(hook_name=f"{hook_name}.diff")
    trigger = torch.tensor([sample.group == "trigger" for sample in samples])
    benign = torch.tensor([sample.group == "benign" for sample in samples])
    if not trigger.any() or not benign.any() or not 1 <= n_directions < len(samples):
        raise ValueError(
            "need trigger and benign `samples`, and more of them than directions; got "
            f"{int(trigger.sum())}, {int(benign.sum())} and {n_directions} directions"
        )
    diff = read_prompts(pair, [s.undecided for s in samples], {"diff": reader})["diff"]
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n_directions, diff.shape[1], generator=generator)
    means = (diff[trigger].mean(0) - diff[benign].mean(0))[None]
    components = torch.linalg.svd(diff - diff.mean(0), full_matrices=False).Vh[:n_directions]
    return {
        "random directions": torch.nn.functional.normalize(random, dim=-1),
        "difference of means": torch.nn.functional.normalize(means, dim=-1),
        "principal components": components,
    }
