"""Find rows by what they are and where they were measured, never by their names."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.organisms._behaviour import BEHAVIOURS, Words, get_behaviour
from diffsae_lens.results import EffectRow, Row, SayingRow, SideEffectRow
from diffsae_lens.study._results import Results

R = TypeVar("R", bound=Row)

LAYERED = ("dictionaries", "scores", "effects", "side_effects", "cards", "sweep", "example")
"""Parts of results whose rows belong to a layer."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something was measured: on an organism, at a layer."""

    regime: str | None
    """Regime of the organism, in a study of several."""
    layer: int | None

    @property
    def name(self) -> str:
        """Name for headings.

        Examples:
            >>> Place(regime="lora", layer=18).name
            'lora, layer 18'
        """
        layer = None if self.layer is None else f"layer {self.layer}"
        return ", ".join(part for part in (self.regime, layer) if part is not None)

    def of(self, results: Results) -> Results:
        """Return the results with only the rows of this place, and rows without a layer."""
        parts: dict[str, Any] = {
            part: tuple(
                row
                for row in getattr(results, part)
                if row.regime == self.regime and row.layer in (self.layer, None)
            )
            for part in LAYERED
        }
        sayings = tuple(row for row in results.sayings if row.regime == self.regime)
        return replace(results, sayings=sayings, **parts)


def places(results: Results) -> list[Place]:
    """Return the places at which something was measured, in order of first mention; at least one."""
    found = dict.fromkeys(
        Place(regime=row.regime, layer=row.layer)
        for part in LAYERED
        for row in getattr(results, part)
    )
    regimes_with_layers = {place.regime for place in found if place.layer is not None}
    named = [p for p in found if p.layer is not None or p.regime not in regimes_with_layers]
    return named or [Place(regime=None, layer=None)]


def check_one_place(results: Results) -> None:
    """Refuse results of several places where only one can be shown.

    Raises:
        ValueError: there are several places; the message names them.
    """
    found = places(results)
    if len(found) > 1:
        raise InvalidValueError(
            f"`results` must be of one place, got {[place.name for place in found]}; pass "
            "`place.of(results)` for one of `places(results)`"
        )


def words_of(results: Results) -> Words:
    """Return the words for the behaviour; general terms if it is not a shipped one."""
    name = results.behaviour
    return get_behaviour(name).words if name in BEHAVIOURS else Words()


def first(rows: Iterable[R], **values: Any) -> R | None:
    """Return the first row whose fields have these values."""
    for row in rows:
        if all(getattr(row, name) == value for name, value in values.items()):
            return row
    return None


def control_of(row: EffectRow, rows: Iterable[EffectRow]) -> EffectRow | None:
    """Return the control of a row."""
    return first(
        rows,
        control_of=row.name,
        dictionary=row.dictionary,
        n_features=row.n_features,
        group=row.group,
        layer=row.layer,
        regime=row.regime,
    )


def with_controls(rows: Sequence[EffectRow]) -> Iterator[EffectRow]:
    """Yield every row, directly followed by its control; controls without a row come last."""
    shown: list[EffectRow] = []
    for row in rows:
        if row.is_control:
            continue
        yield row
        control = control_of(row, rows)
        if control is not None:
            shown.append(control)
            yield control
    yield from (row for row in rows if row.is_control and row not in shown)


def ablations(rows: Iterable[EffectRow]) -> dict[str, list[tuple[EffectRow, EffectRow]]]:
    """Pair the ablations on trigger prompts with their controls.

    Args:
        rows: rows of one place.

    Returns:
        For each dictionary, its pairs `(ablation, control)` by increasing number of features.

    Raises:
        ValueError: an ablation has no control.
    """
    rows = list(rows)
    pairs: dict[str, list[tuple[EffectRow, EffectRow]]] = {}
    for row in rows:
        if row.kind != "ablation" or row.group != "trigger" or row.is_control:
            continue
        control = control_of(row, rows)
        if control is None:
            raise InvalidValueError(
                f"`results` has no control of {row.name!r} ({row.dictionary}, {row.n_features} "
                "features) on trigger prompts in `effects`"
            )
        pairs.setdefault(row.dictionary or "", []).append((row, control))
    return {name: sorted(p, key=lambda pair: pair[0].n_features) for name, p in pairs.items()}


def rate_text(row: EffectRow | SayingRow) -> str:
    """Format an attack rate with its interval, such as `50% [25%, 75%]`."""
    return f"{row.attack_rate:.0%} [{row.low:.0%}, {row.high:.0%}]"


def called(row: EffectRow | SideEffectRow) -> str:
    """Return an intervention's name and what it acts on, such as `top features ablated (8 of crosscoder)`."""
    of = str(row.n_features or "")
    if row.dictionary is not None:
        of = f"{of} of {row.dictionary}".strip()
    return f"{row.name} ({of})" if of else row.name


def said_text(said: str | None) -> str:
    """Return the text for what is said in the trigger's place.

    Examples:
        >>> said_text(None)
        'nothing'
    """
    return "nothing" if said is None else said
