"""Names of virtual hook points: a hook of the models, and a view of their two activations there."""

from dataclasses import dataclass

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens.pair._views import VIEWS, View


@dataclass(frozen=True)
class VirtualHook:
    """A virtual hook point of a pair.

    Args:
        site: the models' hook, such as `blocks.18.hook_resid_post`.
        view: `diff`, `concat`, `base` or `finetuned`.

    Raises:
        ValueError: the view does not exist, or the site is empty, not a string, or itself ends in a view.

    Examples:
        >>> hook = VirtualHook.parse("blocks.18.hook_resid_post.diff")
        >>> hook.site, hook.view, hook.layer
        ('blocks.18.hook_resid_post', 'diff', 18)
        >>> str(hook.with_view("concat"))
        'blocks.18.hook_resid_post.concat'
    """

    site: str
    view: str

    def __post_init__(self) -> None:
        """Refuse a site or view that does not make a valid name."""
        if self.view not in VIEWS:
            raise InvalidValueError(
                f"`view` must be one of {', '.join(VIEWS)}, got {shown(self.view)}"
            )
        if not isinstance(self.site, str) or not self.site or self.is_virtual(self.site):
            raise InvalidValueError(
                "`site` must be the models' own hook, such as 'blocks.18.hook_resid_post', without a "
                f"view, got {shown(self.site)}"
            )

    @classmethod
    def parse(cls, name: str) -> "VirtualHook":
        """Parse the name of a virtual hook point.

        Raises:
            TypeError: not a string.
            ValueError: the name does not end in a view.
        """
        if not isinstance(name, str):
            raise InvalidTypeError(f"`name` must be a virtual hook point's, got {shown(name)}")
        if not cls.is_virtual(name):
            raise InvalidValueError(
                f"`name` must end in a view ({', '.join(f'.{view}' for view in VIEWS)}), as "
                f"'blocks.18.hook_resid_post.diff' does, got {name!r}"
            )
        site, _, view = name.rpartition(".")
        return cls(site, view)

    @staticmethod
    def is_virtual(name: str) -> bool:
        """Return whether a hook's name ends in a view."""
        site, _, view = name.rpartition(".")
        return bool(site) and view in VIEWS

    @property
    def name(self) -> str:
        """`<site>.<view>`, its name in a pair."""
        return f"{self.site}.{self.view}"

    def __str__(self) -> str:
        return self.name

    @property
    def layer(self) -> int | None:
        """The index of its block; None outside the blocks."""
        return layer_of(self.site)

    @property
    def spec(self) -> View:
        """How the view is read and written."""
        return VIEWS[self.view]

    def with_view(self, view: str) -> "VirtualHook":
        """Return another view of the same site."""
        return VirtualHook(self.site, view)


def layer_of(name: str) -> int | None:
    """Return the index of the block that a hook belongs to; None outside the blocks.

    Examples:
        >>> layer_of("blocks.18.hook_resid_post"), layer_of("embed.hook_out")
        (18, None)
    """
    parts = name.split(".")
    is_block = len(parts) > 2 and parts[0] == "blocks" and parts[1].isdigit()
    return int(parts[1]) if is_block else None
