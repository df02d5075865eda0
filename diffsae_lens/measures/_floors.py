"""Baselines that give a score meaning: features taken from the activations alone, without training.

Each function turns activations into `feature_acts`, which go through the same measures as a
dictionary's. A dictionary has found something if it scores higher than these.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.measures._validation import check_masks, check_matrix


@typed
def random_direction_acts(
    activations: Float[Tensor, "prompt d_in"],
    *,
    n_directions: Count,
    generator: torch.Generator,
) -> Float[Tensor, "prompt n_directions"]:
    """Read activations with random, untrained ReLU features.

    relu(x W) with W's entries drawn from N(0, 1) and its columns scaled to unit length: the floor
    for a dense code such as the paper's Diff-SAE. As for the Diff-SAE, activations are not centred.

    Args:
        activations: one vector per prompt, such as the mean difference over its tokens.
        n_directions: number of features; use the dictionary's, since the best feature counts.
        generator: generator of the directions, which are drawn on its device.

    Returns:
        One activation, at least 0, per prompt and direction, in float32 or wider.

    Raises:
        ValueError: activations that are not a finite floating-point matrix, or no directions.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> feature_acts = random_direction_acts(torch.eye(3), n_directions=5, generator=generator)
        >>> feature_acts.shape, feature_acts.min().item()
        (torch.Size([3, 5]), 0.0)
    """
    check_matrix("activations", activations)
    activations = _wide(activations)
    directions = torch.randn(
        activations.shape[1], n_directions, generator=generator, device=generator.device
    )
    directions = torch.nn.functional.normalize(directions, dim=0).to(activations)
    return torch.relu_(activations @ directions)


@typed
def random_topk_acts(
    activations: Float[Tensor, "prompt d_in"],
    *,
    n_directions: Count,
    k: Count,
    generator: torch.Generator,
) -> Float[Tensor, "prompt n_directions"]:
    """Read activations with random, untrained features, and keep the k greatest per prompt.

    The code of `random_direction_acts` with the same generator state, with all but the k greatest
    entries of each prompt set to 0: the floor for a sparse code such as the paper's crosscoder.

    Args:
        activations: one vector per prompt.
        n_directions: number of features; use the dictionary's, since the best feature counts.
        k: number of entries kept per prompt; fewer are positive if the ReLU left fewer.
        generator: generator of the directions.

    Returns:
        One activation, at least 0, per prompt and direction, in float32 or wider.

    Raises:
        ValueError: activations that are not a finite floating-point matrix, no directions, or `k` not
            between 1 and `n_directions`.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> feature_acts = random_topk_acts(torch.eye(3), n_directions=9, k=2, generator=generator)
        >>> (feature_acts > 0).sum(dim=1).tolist()
        [2, 2, 2]
    """
    if k > n_directions:
        raise InvalidValueError(
            f"`k` must be at most `n_directions`, which is {n_directions}, got {k}; "
            "lower it or draw more directions"
        )
    dense = random_direction_acts(activations, n_directions=n_directions, generator=generator)
    kept = dense.topk(k, dim=1)
    return torch.zeros_like(dense).scatter_(1, kept.indices, kept.values)


@typed
def difference_of_means_acts(
    activations: Float[Tensor, "prompt d_in"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
    *,
    fit: Bool[Tensor, "prompt"],
) -> Float[Tensor, "prompt 1"]:
    """Project activations onto the unit vector from the benign to the trigger prompts' mean.

    The strongest of the simple supervised detectors, and a dictionary of one feature. It is fitted
    on labels, so score it on prompts outside `fit`.

    Args:
        activations: one vector per prompt.
        is_trigger: the prompts with the trigger.
        is_benign: their benign counterparts.
        fit: the prompts over which the two means are taken.

    Returns:
        The signed projection of every prompt, in float32 or wider; 0 everywhere if the means are
        equal, as for two identical models.

    Raises:
        ValueError: activations that are not a finite floating-point matrix; masks that are not boolean, of
            the wrong length, on another device or empty; trigger and benign overlapping; no trigger
            or no benign prompt in `fit`.

    Source:
        Difference-in-means probing, Marks and Tegmark, arXiv 2310.06824.

    Examples:
        >>> activations = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
        >>> is_trigger = torch.tensor([True, False, True])
        >>> fit = torch.tensor([True, True, False])
        >>> difference_of_means_acts(activations, is_trigger, ~is_trigger, fit=fit).flatten()
        tensor([ 5.,  0., 10.])
    """
    check_matrix("activations", activations)
    check_masks(activations, is_trigger=is_trigger, is_benign=is_benign)
    check_masks(activations, fit=fit)
    for name, mask in (("is_trigger", is_trigger), ("is_benign", is_benign)):
        if not (fit & mask).any():
            raise InvalidValueError(
                f"`fit` must choose at least one prompt of `{name}`, got none; "
                "split each group, not the list of all prompts"
            )
    activations = _wide(activations)
    return activations @ mean_difference(activations, fit & is_trigger, fit & is_benign)[:, None]


def mean_difference(
    activations: Float[Tensor, "prompt d_in"],
    is_trigger: Bool[Tensor, "prompt"],
    is_benign: Bool[Tensor, "prompt"],
) -> Float[Tensor, "d_in"]:
    """Return the unit vector from the benign to the trigger mean; 0 if the means are equal."""
    difference = activations[is_trigger].mean(0) - activations[is_benign].mean(0)
    return torch.nn.functional.normalize(difference, dim=0)


@typed
def top_components(
    activations: Float[Tensor, "prompt d_in"], n_components: Count
) -> Float[Tensor, "n d_in"]:
    """Return the unit vectors of most variance, in descending order; fewer if there are fewer prompts."""
    check_matrix("activations", activations)
    centred = activations.double() - activations.double().mean(0)
    found = torch.linalg.svd(centred, full_matrices=False).Vh[:n_components]
    return found.to(activations.dtype)


def _wide(activations: Tensor) -> Tensor:
    """Cast to at least float32: half precision does not resolve the differences between two models."""
    return activations.to(torch.promote_types(activations.dtype, torch.float32))
