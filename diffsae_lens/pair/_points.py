"""The virtual hook points of a pair: their names, their widths, and which have hooks."""

from collections.abc import Mapping
from typing import Any

from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._texts import PairedText
from diffsae_lens.pair._views import VIEWS


class PairedPoints(PairedText):
    """A pair of models with a hook point for every view of each of its sites."""

    hook_names: tuple[str, ...]
    """The sites: full TransformerLens names."""
    _widths: Mapping[str, int]
    """Width of one model's activation at each site."""

    def _make_hook_points(self) -> None:
        self.mod_dict, self.hook_dict = {}, {}
        for hook_name in self.hook_names:
            for view in VIEWS:
                point = HookPoint()
                point.name = VirtualHook(hook_name, view).name
                self.mod_dict[point.name] = self.hook_dict[point.name] = point

    def width(self, hook_name: str) -> int:
        """Return the width of one model's activation at a site or a virtual hook point.

        Activations of several heads (`hook_z`) are concatenated into one vector per position.

        Raises:
            ValueError: unknown hook name.
        """
        if hook_name in self._widths:
            return self._widths[hook_name]
        self.check_hook_name(hook_name)
        return self._widths[VirtualHook.parse(hook_name).site]

    def d_in(self, hook_name: str) -> int:
        """Return the width of a virtual hook point.

        Raises:
            ValueError: unknown hook name or view.
        """
        self.check_hook_name(hook_name)
        return self.width(hook_name) * VirtualHook.parse(hook_name).spec.n_models

    def check_hook_name(self, hook_name: str) -> None:
        """Refuse a name that does not belong to one of the pair's virtual hook points.

        Raises:
            ValueError: says which names there are.
        """
        if hook_name not in self.hook_dict:
            raise InvalidValueError(
                f"`hook_name` {hook_name!r} is not a hook point of this pair, which has "
                f"{sorted(self.hook_dict)}; build the pair with the hook you need"
            )

    def virtual_hook(self, hook_name: str, view: str) -> VirtualHook:
        """Return a view of one of the hooks that the pair was built for.

        Raises:
            ValueError: the pair was not built for this hook, or the view does not exist.
        """
        if hook_name not in self.hook_names:
            raise InvalidValueError(
                f"`hook_name` {hook_name!r} is not a hook point of this pair, which was built "
                f"for {list(self.hook_names)}; name one of them, or build the pair with the hook you need"
            )
        return VirtualHook(hook_name, view)

    def _hooked(self) -> dict[str, list[VirtualHook]]:
        """Return the virtual hook points that have hooks, by site."""
        hooked = {
            site: [
                hook
                for hook in (VirtualHook(site, view) for view in VIEWS)
                if self.hook_dict[hook.name].has_hooks("both")
            ]
            for site in self.hook_names
        }
        return {site: hooks for site, hooks in hooked.items() if hooks}

    @property
    def hooks_in_use(self) -> list[str]:
        """The names of the pair's hook points that have hooks."""
        return [hook.name for hooks in self._hooked().values() for hook in hooks]

    def _reads_base(self) -> bool:
        """Whether a hook in use needs the base to run."""
        return any(hook.spec.needs_base for hooks in self._hooked().values() for hook in hooks)

    @override
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """Add hooks for the duration of a `with`, as in TransformerLens but with checked names."""
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self.check_hook_name(name)
        return super().hooks(list(fwd_hooks), list(bwd_hooks), *args, **kwargs)

    @override
    def get_caching_hooks(self, names_filter: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Make caching hooks, as in TransformerLens but with checked names."""
        named = [names_filter] if isinstance(names_filter, str) else names_filter
        for name in named if isinstance(named, list | tuple) else ():
            self.check_hook_name(name)
        return super().get_caching_hooks(names_filter, *args, **kwargs)
