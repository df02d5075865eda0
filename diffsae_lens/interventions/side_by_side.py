"""The same prompts under several interventions at once, each on rows of its own.

A step of generation costs a small model nearly the same for one row as for a hundred, so one batch with
a row for each intervention and prompt takes a fraction of the time of one batch an intervention.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from diffsae_lens._checks import check_callable, check_count
from diffsae_lens._typed import typed
from diffsae_lens.effects.rates import check_generation, complete
from diffsae_lens.interventions.edits import Intervention, Sharing
from diffsae_lens.pair.hooked import HookedModelPair

Intervene = Callable[[], AbstractContextManager[Any]]
"""Opens an intervention, such as `lambda: ablate_features(pair, sae, [17])`."""


def acting_pair(pair: HookedModelPair, given: Any) -> HookedModelPair:
    """The pair that an intervention yielded, or the one it was opened on."""
    return given if isinstance(given, HookedModelPair) else pair


def check_interventions(interventions: Mapping[str, Intervene]) -> None:
    """Refuse what does not name ways to open an intervention.

    Raises:
        TypeError: not a mapping, or one of something that cannot be called, such as an intervention
            that is open already.
    """
    if not isinstance(interventions, Mapping):
        raise TypeError(
            "`interventions` must map names to functions that open one, got "
            f"{type(interventions).__name__}; give {{'name': lambda: ablate_features(...)}}"
        )
    for name, intervene in interventions.items():
        # A context manager of `contextlib` can be called (it decorates), and opens nothing then.
        opened = isinstance(intervene, AbstractContextManager)
        check_callable(f"interventions[{name!r}]", None if opened else intervene)


@typed
def complete_under(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    prompts: Sequence[str],
    *,
    batch_size: int = 160,
    **generate_kwargs: Any,
) -> dict[str, list[str]]:
    """Complete the same prompts under each intervention, many of them in the same batches.

    Equal to completing them under one after the other, up to the rounding of other batch sizes. What
    shares batches are interventions of this package (whatever yields an `Intervention`; one of your
    own must not add other hooks beside) and `nullcontext`. All else, such as a pair of its own or
    hooks added by hand, is completed alone; so are sampled completions (`do_sample=True`).

    Args:
        pair: the two models.
        interventions: by name, how to open each.
        prompts: texts.
        batch_size: rows of a batch: prompts times interventions.
        **generate_kwargs: passed to `complete`.

    Returns:
        The completions by name, in the order of the prompts.

    Raises:
        TypeError, ValueError: interventions that cannot be opened, or as for `complete` and as the
            interventions raise.
    """
    check_interventions(interventions)
    batch_size = check_count("batch_size", batch_size)
    prompts = check_generation(pair, prompts, generate_kwargs)
    names = list(interventions)
    written: dict[str, list[str]] = {}
    for start in range(0, len(names), batch_size):
        chunk = {name: interventions[name] for name in names[start : start + batch_size]}
        written |= _complete_chunk(pair, chunk, prompts, batch_size, generate_kwargs)
    return {name: written[name] for name in names}


def _complete_chunk(
    pair: HookedModelPair,
    interventions: Mapping[str, Intervene],
    prompts: Sequence[str],
    batch_size: int,
    generate_kwargs: dict[str, Any],
) -> dict[str, list[str]]:
    """Complete under as many interventions as a batch has rows for."""
    sharing, written, shared = Sharing(), {}, {}
    with ExitStack() as stack:
        for i, (name, intervene) in enumerate(interventions.items()):
            with ExitStack() as own, sharing.only(i):
                given = own.enter_context(intervene())
                if _shares(intervene, given) and not generate_kwargs.get("do_sample"):
                    shared[i] = name
                    stack.push(own.pop_all())
                else:
                    acting = acting_pair(pair, given)
                    written[name] = complete(acting, prompts, **generate_kwargs)
        if shared:
            n = len(shared)
            # A row for each intervention, prompt by prompt: batches are whole multiples of that.
            tiled = [prompt for prompt in prompts for _ in range(n)]
            with sharing.side_by_side(list(shared)):
                rows = complete(
                    pair, tiled, batch_size=n * max(1, batch_size // n), **generate_kwargs
                )
            written |= {name: rows[at::n] for at, name in enumerate(shared.values())}
    return written


def _shares(intervene: Intervene, given: Any) -> bool:
    """Whether an intervention keeps to rows of its own."""
    return intervene is nullcontext or isinstance(given, Intervention)
