"""The same prompts under several interventions at once, each on rows of its own.

A step of generation costs a small model nearly the same for one row as for a hundred, so one batch with
a row for each intervention and prompt takes a fraction of the time of one batch an intervention.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from diffsae_lens.interventions.edits import shares, taking_share
from diffsae_lens.interventions.rates import complete
from diffsae_lens.pair import HookedModelPair

Intervene = Callable[[], AbstractContextManager[Any]]
"""Opens an intervention, such as `lambda: ablate_features(pair, sae, [17])`."""

MAX_ROWS = 160
"""Of a batch: KV caches of both models are held for all of them."""


def complete_under(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    prompts: Sequence[str],
    *,
    max_rows: int = MAX_ROWS,
    **generate_kwargs: Any,
) -> dict[str, list[str]]:
    """Complete the same prompts under each intervention, all of them in the same batches.

    Equal to completing them under one after the other, up to the rounding of other batch sizes;
    sampled completions (`do_sample=True`) are drawn under one after the other.

    Args:
        pair: the two models.
        interventions: by name, how to open each. One that yields a pair of its own, as
            `induce_features` does, is completed on that pair alone.
        prompts: texts.
        max_rows: of a batch: prompts times interventions.
        **generate_kwargs: passed to `complete`.

    Returns:
        The completions by name, in the order of the prompts.

    Raises:
        ValueError: no prompts, or as the interventions raise.
    """
    if generate_kwargs.get("do_sample"):
        written = {}
        for name, intervene in interventions.items():
            with intervene() as given:
                written[name] = complete(_acting(pair, given), prompts, **generate_kwargs)
        return written
    with ExitStack() as stack:
        acting = {}
        for i, (name, intervene) in enumerate(interventions.items()):
            with taking_share(i):
                acting[name] = _acting(pair, stack.enter_context(intervene()))
        n = len(acting)
        rows: list[str] = []
        if pair in acting.values():
            # A row for each intervention, prompt by prompt: batches are whole multiples of that.
            tiled = [prompt for prompt in prompts for _ in range(n)]
            batch_size = n * max(1, max_rows // n)
            with shares(n):
                rows = complete(pair, tiled, batch_size=batch_size, **generate_kwargs)
        return {
            name: rows[i::n] if acts is pair else complete(acts, prompts, **generate_kwargs)
            for i, (name, acts) in enumerate(acting.items())
        }


def _acting(pair: HookedModelPair, given: Any) -> HookedModelPair:
    """The pair an intervention yields, or the one it was opened on."""
    return given if isinstance(given, HookedModelPair) else pair
