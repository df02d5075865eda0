"""Interventions and directions that need no dictionary: controls for those that do."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffsae_lens._checks import check_count, check_items, check_list
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import typed
from diffsae_lens.interventions._edit import Edit, Where
from diffsae_lens.measures._floors import mean_difference, top_components
from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.reading._prompts import Reader, read_prompts


@typed
def swap_to_base(
    pair: HookedModelPair,
    site: str,
    *,
    where: Where = "all",
    skip_positions: int = 0,
    ignored_token_ids: Sequence[int] = (),
) -> Edit:
    """Replace the fine-tuned activation with the base model's, removing the whole difference.

    As a control for a dictionary, it has to act on the same tokens: pass the token policy of the
    dictionary's record, `swap_to_base(pair, site, **vars(DictionaryRecord.of(dictionary).tokens))`.

    Args:
        pair: the two models.
        site: the models' own hook, such as `blocks.18.hook_resid_post`.
        where: positions acted on.
        skip_positions: number of leading tokens of the prompt left unchanged.
        ignored_token_ids: tokens left unchanged at any position.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: the pair was not built for this hook, or arguments out of range.
    """
    return Edit(
        pair=pair,
        hook=pair.virtual_hook(site, "diff").name,
        change=lambda value, _: torch.zeros_like(value),
        where=where,
        policy=_policy(skip_positions, ignored_token_ids),
        kind="swap to base",
    )


@typed
def perturb(pair: HookedModelPair, site: str, *, where: Where = "all") -> Edit:
    """Add a random vector as long as the difference: the control for `swap_to_base`.

    The activation moves as far as in a swap to base, but in another direction.

    Args:
        pair: the two models.
        site: the models' own hook, such as `blocks.18.hook_resid_post`.
        where: positions acted on.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: the pair was not built for this hook, or arguments out of range.
    """

    def moved(value: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, device=value.device).to(value)
        length = value.norm(dim=-1, keepdim=True)
        return value + length * torch.nn.functional.normalize(drawn, dim=-1)

    return Edit(
        pair=pair,
        hook=pair.virtual_hook(site, "diff").name,
        change=moved,
        where=where,
        draws=True,
    )


@typed
def project_out(
    pair: HookedModelPair,
    hook: str,
    direction: Tensor,
    *,
    where: Where = "all",
    skip_positions: int = 0,
    ignored_token_ids: Sequence[int] = (),
) -> Edit:
    """Remove a direction from the value of a virtual hook point.

    As a control for a dictionary, it needs the token policy of the dictionary's record; see `swap_to_base`.

    Args:
        pair: the two models.
        hook: a virtual hook point, such as `blocks.18.hook_resid_post.diff`.
        direction: one direction `[d_in]`, or `[n, d_in]` to remove the space they span; of any length.
        where: positions acted on.
        skip_positions: number of leading tokens of the prompt left unchanged.
        ignored_token_ids: tokens left unchanged at any position.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: an unknown hook point; a direction that has another width, is zero or is
            not finite; or arguments out of range.
    """
    rows = torch.atleast_2d(direction)
    if (
        rows.ndim != 2
        or len(rows) == 0
        or rows.shape[-1] != pair.d_in(hook)
        or not rows.is_floating_point()
        or not rows.isfinite().all()
        or not rows.any(-1).all()
    ):
        raise InvalidValueError(
            f"`direction` must be finite, not zero and {pair.d_in(hook)} wide as {hook} is, "
            f"got shape {list(direction.shape)}"
        )
    rows = torch.nn.functional.normalize(rows.to(pair.device).float(), dim=-1)
    left, sizes, _ = torch.linalg.svd(rows.T, full_matrices=False)
    basis = left[:, sizes > 1e-5 * sizes[0]]  # repeated directions span no extra dimension

    def project(value: Tensor, _: torch.Generator) -> Tensor:
        return value - (value @ basis.to(value)) @ basis.to(value).T

    return Edit(
        pair=pair,
        hook=hook,
        change=project,
        where=where,
        policy=_policy(skip_positions, ignored_token_ids),
        kind="projection",
        n_features=len(rows),
    )


@typed
def add_direction(
    pair: HookedModelPair,
    hook: str,
    direction: Float[Tensor, "d_in"],
    *,
    where: Where = "all",
    skip_positions: int = 1,
    ignored_token_ids: Sequence[int] = (),
) -> Edit:
    """Add a vector to the value of a virtual hook point: steering without a dictionary.

    Args:
        pair: the two models.
        hook: a virtual hook point, such as `blocks.18.hook_resid_post.finetuned`.
        direction: the vector to add, without rescaling.
        where: positions acted on.
        skip_positions: number of leading tokens of the prompt left unchanged.
        ignored_token_ids: tokens left unchanged at any position.

    Returns:
        The edit, to be opened with `with` or passed to `complete(under=...)`.

    Raises:
        TypeError, ValueError: an unknown hook point; a direction that has another width or is not finite;
            or arguments out of range.
    """
    if (
        direction.shape != (pair.d_in(hook),)
        or not direction.is_floating_point()
        or not direction.isfinite().all()
    ):
        raise InvalidValueError(
            f"`direction` must be finite and {pair.d_in(hook)} wide as {hook} is, got shape "
            f"{list(direction.shape)}"
        )
    return Edit(
        pair=pair,
        hook=hook,
        change=lambda value, _: value + direction.to(value),
        where=where,
        policy=_policy(skip_positions, ignored_token_ids),
        kind="steering",
    )


def _policy(skip_positions: int, ignored_token_ids: Sequence[int]) -> TokenPolicy:
    ignored = check_list("ignored_token_ids", ignored_token_ids, "token ids")
    return TokenPolicy(skip_positions=skip_positions, ignored_token_ids=tuple(ignored))


@typed
def control_directions(
    pair: HookedModelPair,
    site: str,
    samples: Sequence[Sample],
    *,
    n_directions: int,
    seed: int = 0,
) -> dict[str, Float[Tensor, "n d_model"]]:
    """Return directions of the difference to remove with `project_out`, as controls for as many features.

    Args:
        pair: the two models.
        site: the models' own hook, such as `blocks.18.hook_resid_post`.
        samples: trigger and benign prompts to fit the directions on, read where the organism decides;
            report on other prompts.
        n_directions: number of random directions and of principal components.
        seed: seed of the random directions.

    Returns:
        `random directions` and `principal components` `[n_directions, d_model]`, and `difference of
        means` between trigger and benign prompts `[1, d_model]`, all of unit length.

    Raises:
        TypeError: `samples` are not the organism's samples, or a count is not an integer.
        ValueError: no trigger or no benign samples, fewer samples than components, or an unknown hook.
    """
    hook = pair.virtual_hook(site, "diff")
    samples = check_items("samples", samples, Sample)
    n_directions = check_count("n_directions", n_directions)
    reader = Reader(hook_name=hook.name)
    trigger = torch.tensor([sample.group == "trigger" for sample in samples])
    benign = torch.tensor([sample.group == "benign" for sample in samples])
    if not trigger.any() or not benign.any() or n_directions >= len(samples):
        raise InvalidValueError(
            "need trigger and benign `samples`, and more of them than directions; got "
            f"{int(trigger.sum())}, {int(benign.sum())} and {n_directions} directions"
        )
    diff = read_prompts(pair, [s.undecided for s in samples], {"diff": reader})["diff"]
    generator = torch.Generator().manual_seed(check_count("seed", seed, at_least=0))
    random = torch.randn(n_directions, diff.shape[1], generator=generator)
    return {
        "random directions": torch.nn.functional.normalize(random, dim=-1),
        "difference of means": mean_difference(diff, trigger, benign)[None],
        "principal components": top_components(diff, n_directions),
    }
