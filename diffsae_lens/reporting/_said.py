"""The axis of what is said in the trigger's place: numeric if all of it is years, else categories."""

import re
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from diffsae_lens.reporting._lookup import said_text
from diffsae_lens.reporting._style import BENIGN, MUTED, TRIGGER, label

_GROUNDS = {"trigger": TRIGGER, "benign": BENIGN}
_SHORT = 5
"""Maximum number of characters of a label that is not slanted."""


class SaidAxis:
    """Positions and labels of the axis of what is said.

    Args:
        groups: group of the prompts for each text said, in order.
    """

    def __init__(self, groups: Mapping[str | None, str]):
        said = list(groups)
        self.is_numeric = all(re.fullmatch(r"[0-9]{4}", text or "") for text in said)
        self.groups = groups
        self.at: dict[str | None, int] = {
            text: int(text or "0") if self.is_numeric else i for i, text in enumerate(said)
        }

    @property
    def marker(self) -> str:
        """Marker style: a line connects numbers, but not categories."""
        return "o-" if self.is_numeric else "o"

    def order(self, said: Iterable[str | None]) -> list[str | None]:
        """Return what is said, from left to right."""
        return sorted(said, key=lambda text: self.at[text])

    def draw(self, ax: Axes, *, n_labels: int = 12, width: int = 20) -> None:
        """Shade trigger and benign, and label the axis.

        Args:
            ax: axes to draw on.
            n_labels: maximum number of labelled numbers; categories are all labelled.
            width: room for a label, in ems.
        """
        for text, group in self.groups.items():
            if group in _GROUNDS:
                at = self.at[text]
                ax.axvspan(at - 0.5, at + 0.5, color=_GROUNDS[group], lw=0, zorder=0)
        shown = self._labelled(n_labels)
        labels = [label(said_text(text), width) for text in shown]
        slanted = max(map(len, labels), default=0) > _SHORT
        ax.set_xticks(
            [self.at[text] for text in shown],
            labels,
            rotation=35 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor",
        )
        ax.set_xlim(min(self.at.values()) - 0.6, max(self.at.values()) + 0.6)

    def _labelled(self, n_labels: int) -> Sequence[str | None]:
        """Return what to label: every category, or a trigger and the numbers at equal steps from it."""
        if not self.is_numeric:
            return list(self.at)
        step = -(-len(self.at) // n_labels)
        triggers = [self.at[text] for text, group in self.groups.items() if group == "trigger"]
        origin = min(triggers, default=min(self.at.values()))
        return [text for text, at in self.at.items() if (at - origin) % step == 0]

    def legend(self) -> list[Patch | Line2D]:
        """Return legend handles for the background colours."""
        drawn = set(self.groups.values())
        return [
            Patch(facecolor=ground, edgecolor=MUTED, lw=0.4, label=group)
            for group, ground in _GROUNDS.items()
            if group in drawn
        ]
