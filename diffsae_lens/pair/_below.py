"""Several passes over the same texts that differ only above some block: what is below is computed once."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._shared import n_alike, narrowed

logger = logging.getLogger(__name__)


class _AllReadError(Exception):
    """Ends the fine-tuned model's forward pass below the lowest hook."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Below:
    """What both models compute on some texts below the lowest hook in use."""

    pair: HookedModelPair
    tokens: Int[Tensor, "text pos"]
    base: Mapping[str, Tensor]
    """The base's activations at the sites whose views need them."""
    n_blocks: int
    """Number of the fine-tuned model's blocks that need not run again."""
    output: Any
    """Output of the last of these blocks, before its hooks; None if there are none."""

    @contextmanager
    def resumed(self, rows: Int[Tensor, "row"] | slice = slice(None)) -> Iterator[None]:
        """Resume forward passes on `tokens[rows]` from here."""
        n_texts = len(self.tokens)
        index = torch.arange(n_texts, device=self.tokens.device)[rows]
        output = narrowed(self.output, n_texts, index)

        def forward(*_: Any, **__: Any) -> Any:
            return output

        blocks: list[Any] = list(self.pair.finetuned.blocks)[: self.n_blocks]
        # The last block's own forward fires the hooks on its output.
        skipped = [*blocks[:-1], *(block.original_component for block in blocks[-1:])]
        before, self.pair._given = self.pair._given, narrowed(dict(self.base), n_texts, index)
        try:
            with ExitStack() as stack:
                for module in skipped:
                    stack.enter_context(_running_instead(module, forward))
                yield
        finally:
            self.pair._given = before


@torch.no_grad()
def read_below(
    pair: HookedModelPair, tokens: Int[Tensor, "text pos"], hooks: Sequence[str]
) -> Below:
    """Run both models on texts, the fine-tuned one up to the lowest hook.

    If passes cannot be resumed, which a pair tests for itself, only the base is run.

    Args:
        pair: the two models.
        tokens: token ids, padded on the right.
        hooks: the virtual hook points to be hooked in the resumed passes, besides those in use now.
    """
    if pair._resumes is None:
        pair._resumes = _resumes_rightly(pair._twin())
    return _read(pair, tokens, hooks, resumes=pair._resumes)


def _read(pair: HookedModelPair, tokens: Tensor, hooks: Sequence[str], *, resumes: bool) -> Below:
    hooks = [*pair.hooks_in_use, *hooks]
    parsed = [VirtualHook.parse(name) for name in hooks]
    sites = dict.fromkeys(hook.site for hook in parsed if hook.spec.needs_base)
    n_blocks = n_alike(hooks, pair.cfg.n_layers) if resumes else 0
    kept: list[Any] = []
    base: dict[str, Tensor] = {}
    if sites or n_blocks:
        looks = [(VirtualHook(site, "base").name, lambda value, hook: None) for site in sites]  # noqa: ARG005
        with pair.hooks(fwd_hooks=looks), pair._running() as run:

            def stop(_: Any, __: Any, output: Any = None) -> None:
                if not run.base_runs:
                    kept.append(output)
                    raise _AllReadError

            blocks: Any = pair.finetuned.blocks
            handle = (
                blocks[n_blocks - 1].original_component.register_forward_hook(stop)
                if n_blocks
                else blocks[0].register_forward_pre_hook(stop)
            )
            try:
                pair.finetuned(tokens, prepend_bos=False)
            except _AllReadError:
                pass
            finally:
                handle.remove()
            base = {site: run.base_activations[site] for site in sites}
    [output] = kept or [None]
    return Below(pair=pair, tokens=tokens, base=base, n_blocks=n_blocks, output=output)


@contextmanager
def _running_instead(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run a function in place of a module's forward."""
    # Through `vars`: a bridge's component forwards attributes to the module it wraps.
    own = vars(module)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


@torch.no_grad()
def _resumes_rightly(pair: HookedModelPair) -> bool:
    """Whether resumed passes match whole ones, from the lowest and from the highest of the pair's hooks."""
    generator = torch.Generator().manual_seed(13)
    tokens = torch.randint(pair.cfg.d_vocab, (3, 6), generator=generator).to(pair.device)
    rows = torch.tensor([2, 0, 0, 1], device=pair.device)
    tolerance = 0.2 if pair.metadata.dtype in ("bfloat16", "float16") else 1e-4
    for name in dict.fromkeys((pair.hook_names[0], pair.hook_names[-1])):
        hook = VirtualHook(name, "concat").name

        def push(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
            base, finetuned = value.chunk(2, dim=-1)
            moved = 3 * finetuned - 2 * base + finetuned.roll(1, dims=-1)
            return torch.cat([base, moved], dim=-1)

        try:
            below = _read(pair, tokens, [hook], resumes=True)
            with pair.hooks(fwd_hooks=[(hook, push)]):
                whole = pair(tokens[rows])
                with below.resumed(rows):
                    found = pair(tokens[rows])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            logger.debug("passes cannot be resumed: %s", error)
            return False
        if (found - whole).abs().max() > tolerance * whole.std().clamp(min=1e-12):
            return False
    return True
