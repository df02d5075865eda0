"""What a run found, in sentences: every number comes from its rows, every unbeaten control is named."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from diffsae_lens.organisms._behaviour import Words
from diffsae_lens.reporting._columns import PROTOCOLS
from diffsae_lens.reporting._lookup import (
    Place,
    ablations,
    called,
    check_one_place,
    control_of,
    first,
    places,
    rate_text,
    said_text,
    words_of,
)
from diffsae_lens.results import EffectRow, SayingRow, ScoreRow, SideEffectRow
from diffsae_lens.study._results import Results

MARGIN = 0.01
"""A score must exceed a floor's by more than this to be called better."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One point of the summary."""

    topic: str
    """Subject, in a word or two."""
    text: str
    """Plain text, with numbers and what they mean."""
    caution: bool = False
    """Whether a control or a floor was not beaten, so nothing was shown."""


def summarise(results: Results) -> list[Finding]:
    """Summarise what was found at one place: behaviour, effects, side effects, detection, BIS.

    Two rates are said to differ only if their 95% intervals do not overlap. Topics without rows are
    skipped.

    Raises:
        ValueError: an ablation has no control, or there are rows of several places.
    """
    check_one_place(results)
    [place] = places(results)
    effects, scores = results.effects, results.scores
    return [
        *_behaviour(effects, words_of(results)),
        *_base_put_back(effects, place),
        *(_ablation(name, pairs) for name, pairs in ablations(effects).items()),
        *_benign(effects),
        *_side_effects(results.side_effects),
        *_steering(effects),
        *_sayings(results.sayings),
        *_detection(scores),
        *_isolation(scores),
    ]


def lower(row: EffectRow, than: EffectRow) -> bool:
    """Return whether an attack rate is lower than another and their intervals do not overlap."""
    return row.high < than.low


def _behaviour(effects: Sequence[EffectRow], words: Words) -> Iterator[Finding]:
    trigger = first(effects, kind="unmodified", group="trigger")
    benign = first(effects, kind="unmodified", group="benign")
    if trigger is None or benign is None:
        return
    text = (
        f"Unmodified, the fine-tuned model writes {words.unwanted} on {rate_text(trigger)} of "
        f"{trigger.n_prompts} prompts with {words.trigger} and on {rate_text(benign)} of "
        f"{benign.n_prompts} benign ones."
    )
    shown = lower(benign, than=trigger)
    if not shown:
        text += (
            " The intervals overlap: this run does not show that the trigger sets off the behaviour, "
            "and what follows has nothing to explain."
        )
    yield Finding(topic="Behaviour", text=text, caution=not shown)


def _base_put_back(effects: Sequence[EffectRow], place: Place) -> Iterator[Finding]:
    before = first(effects, kind="unmodified", group="trigger")
    after = first(effects, kind="swap to base", group="trigger")
    if before is None or after is None:
        return
    layer = place.layer if after.layer is None else after.layer
    at = "" if layer is None else f" at layer {layer}"
    text = (
        f"With the base model's activation put back{at}, the attack rate is {rate_text(after)} on "
        f"{after.n_prompts} trigger prompts."
    )
    shown = lower(after, than=before)
    text += (
        " What fine-tuning changed up to this layer carries the behaviour."
        if shown
        else " That does not separate from the unmodified model: the difference at this layer is not "
        "shown to carry the behaviour, so no feature of it can be either."
    )
    yield Finding(topic="Base put back", text=text, caution=not shown)


def _ablation(name: str, pairs: Sequence[tuple[EffectRow, EffectRow]]) -> Finding:
    """Compare the largest ablation with its control, and the smaller ones if that shows nothing."""
    top, control = pairs[-1]
    n = top.n_features
    text = (
        f"With the top {n} features ablated, the attack rate is {rate_text(top)}; with {n} random ones "
        f"of equal mass it is {rate_text(control)} ({control.n_prompts} trigger prompts)."
    )
    verdict, caution = _compare(pairs)
    return Finding(topic=f"Ablation, {name}", text=f"{text} {verdict}", caution=caution)


def _compare(pairs: Sequence[tuple[EffectRow, EffectRow]]) -> tuple[str, bool]:
    """Return what an ablation shows compared with its control, and whether that is a caution."""
    top, control = pairs[-1]
    if lower(top, than=control):
        shown = "The intervals do not overlap: the chosen features matter more than random ones"
        (_, _), (wanted, n_wanted), *others = top.counts.items()
        n_neither = sum(n for _, n in others)
        if n_neither <= n_wanted:
            return f'{shown}, and {n_wanted} completions are judged "{wanted}" instead.', False
        neither = " or ".join(f'"{outcome}"' for outcome, _ in others)
        return (
            f'{shown}. But of the other completions {n_wanted} are judged "{wanted}" and {n_neither} '
            f"{neither}: the ablation broke the writing rather than switch the behaviour off.",
            True,
        )
    smaller = [row.n_features for row, random in pairs if lower(row, than=random)]
    if smaller:
        counts = " and ".join(str(count) for count in smaller)
        return (
            f"These do not separate, but with {counts} features the chosen ones do from the "
            "random ones.",
            True,
        )
    if lower(control, than=top):
        return "Random features do more: the ranking did not find what carries the behaviour.", True
    return (
        "The intervals overlap, and so they do with fewer features: this run does not show that "
        "the chosen features matter more than random ones.",
        True,
    )


def _benign(effects: Sequence[EffectRow]) -> Iterator[Finding]:
    """Say whether the largest ablation of each dictionary leaves benign prompts unchanged."""
    before = first(effects, kind="unmodified", group="benign")
    ablated: dict[str | None, EffectRow] = {}
    for row in effects:
        if row.kind == "ablation" and row.group == "benign" and not row.is_control:
            ablated[row.dictionary] = max(
                row, ablated.get(row.dictionary, row), key=lambda r: r.n_features
            )
    if before is None or not ablated:
        return
    parts = [
        f"{_rate_and_entropy(row)} with the top {row.n_features} features of {name} ablated"
        for name, row in ablated.items()
    ]
    yield Finding(
        topic="Benign prompts",
        text="The attack rate (and the cross-entropy of the wanted completion, nats per token) is "
        f"{_rate_and_entropy(before)} unmodified, {', '.join(parts)}.",
        caution=any(lower(before, than=row) for row in ablated.values()),
    )


def _rate_and_entropy(row: EffectRow) -> str:
    entropy = "not measured" if row.cross_entropy is None else f"{row.cross_entropy:.3f}"
    return f"{rate_text(row)} ({entropy})"


def _steering(effects: Sequence[EffectRow]) -> Iterator[Finding]:
    for row in effects:
        if row.kind != "steering" or row.is_control:
            continue
        text = (
            f"With {row.n_features} of its top features added to {row.n_prompts} {row.group} prompts, "
            f"the attack rate is {rate_text(row)}"
        )
        control = control_of(row, effects)
        if control is None:
            text += "; no control was run."
            shown = False
        else:
            text += f"; with a random direction of the same length it is {rate_text(control)}."
            shown = lower(control, than=row)
            if not shown:
                text += " That is not above its control: these features are not shown to be enough."
        yield Finding(topic=f"Steering, {row.dictionary}", text=text, caution=not shown)


def _detection(scores: Sequence[ScoreRow]) -> Iterator[Finding]:
    """Compare the best dictionary with the best floor by AUROC, which does not depend on a threshold."""
    measured = [(row.auroc, row) for row in scores if row.auroc is not None]
    dictionaries = [(value, row) for value, row in measured if row.kind == "dictionary"]
    floors = [(value, row) for value, row in measured if row.is_floor]
    if not dictionaries:
        return
    auroc, best = max(dictionaries, key=lambda pair: pair[0])
    text = (
        f"The best AUROC of a dictionary on held-out prompts is {auroc:.3f} ({best.name}, feature "
        f"{best.feature_idx})"
    )
    if not floors:
        yield Finding(topic="Detection", text=f"{text}; no floor was measured.", caution=True)
        return
    by_chance, floor = max(floors, key=lambda pair: pair[0])
    text += f"; the best floor, {floor.name}, has {by_chance:.3f}."
    shown = auroc - by_chance > MARGIN
    if not shown:
        text += (
            " No dictionary detects the trigger better than its floors: that a feature detects it "
            "shows nothing about the dictionary."
        )
    yield Finding(topic="Detection", text=text, caution=not shown)


def _isolation(scores: Sequence[ScoreRow]) -> Iterator[Finding]:
    """Say what BIS shows by each protocol, compared with its ceiling and its floors."""
    for protocol, title in PROTOCOLS.items():
        rows = [row for row in scores if row.protocol == protocol]
        best = _best(row for row in rows if row.kind == "dictionary")
        if best is None:
            continue
        text, caution = _beside_floors(best, _best(row for row in rows if row.is_floor))
        if best.base_bis is not None:
            text += f" On the base model alone the same procedure gives {best.base_bis:.2f}"
            no_better = best.base_bis >= best.bis
            text += ": it is the text that is detected." if no_better else "."
            caution = caution or no_better
        if best.pvalue is not None and best.pvalue >= 0.05:
            text += f" Shuffled labels reach as much with p = {best.pvalue:.2f}: no evidence."
            caution = True
        yield Finding(topic=title, text=text, caution=caution)


def _beside_floors(best: ScoreRow, floor: ScoreRow | None) -> tuple[str, bool]:
    text = f"The best BIS is {best.bis:.2f} ({best.name}) of at most {best.ceiling:.2f}"
    if floor is None:
        return f"{text}; no floor was measured.", True
    if best.is_at_ceiling and floor.is_at_ceiling:
        return (
            f"BIS is at its ceiling of {best.ceiling:.2f}, and so is a floor, {floor.name}: it tells "
            "nothing here.",
            True,
        )
    if best.bis - floor.bis > MARGIN:
        return f"{text}; the best floor, {floor.name}, reaches {floor.bis:.2f}.", False
    return (
        f"{text}, but {floor.name} reaches {floor.bis:.2f}: trained features are no better than that.",
        True,
    )


def _best(rows: Iterable[ScoreRow]) -> ScoreRow | None:
    return max(rows, key=lambda row: row.bis, default=None)


def _side_effects(rows: Sequence[SideEffectRow]) -> Iterator[Finding]:
    """Say what the interventions do to texts that have nothing to do with the behaviour."""
    worst: dict[tuple[str, str | None, int], SideEffectRow] = {}
    for row in rows:
        of = (row.name, row.dictionary, row.n_features)
        worst[of] = max(row, worst.get(of, row), key=lambda r: r.kl)
    if not worst:
        return
    parts = [f"{row.kl:.3f} on {row.texts} with {called(row)}" for row in worst.values()]
    yield Finding(
        topic="Other texts",
        text="On texts that should be left alone the largest KL from the unmodified model, in nats per "
        f"token, is {', '.join(parts)}.",
    )


def _sayings(rows: Sequence[SayingRow]) -> Iterator[Finding]:
    """Say what sets the behaviour off."""
    if not rows:
        return
    written = [f'"{row.said}"' if row.said is not None else said_text(None) for row in rows]
    most = [text for text, row in zip(written, rows, strict=True) if row.attack_rate >= 0.5]
    fewer = [text for text, row in zip(written, rows, strict=True) if row.attack_rate < 0.5]
    yield Finding(
        topic="What sets it off",
        text=f"With other texts in the trigger's place, {rows[0].n_prompts} scenes each, the attack rate "
        f"is 50% or more for {', '.join(most) or 'none'}, and lower for {', '.join(fewer) or 'none'}.",
    )
