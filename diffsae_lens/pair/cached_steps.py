"""Whether a pair that steps with KV caches computes what it computes in whole passes."""

import logging
from typing import Any, Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_N_PROMPT, _N_STEPS = 5, 4
_FAULTS = (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""What bridges and caches of architectures that do not go together were seen to raise."""


Stepping = Literal["cached", "whole", "not at all"]


def way_to_step(pair: Any, hook_name: str) -> Stepping:
    """Return how a pair can generate: with KV caches, reading the whole text for every token, or neither.

    Some architectures keep a state that is not in the cache a pair hands on, and some bridges step
    wrongly themselves.

    Args:
        pair: a `HookedModelPair` without hooks.
        hook_name: one of its `.diff` hook points.
    """
    if _agrees(pair, hook_name, use_cache=True):
        return "cached"
    way: Stepping = "whole" if _agrees(pair, hook_name, use_cache=False) else "not at all"
    if way == "whole":
        logger.warning(
            "this model does not step with a KV cache as it reads a whole text: generation reads the whole "
            "text for every token"
        )
    return way


@torch.no_grad()
def _agrees(pair: Any, hook_name: str, *, use_cache: bool) -> bool:
    """Generate a few tokens and compare every step with one pass over all of them."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(pair.cfg.d_vocab, (1, _N_PROMPT), generator=generator).to(pair.device)
    options = {"do_sample": False, "verbose": False, "stop_at_eos": False}
    seen: list[Tensor] = []
    with pair.hooks(fwd_hooks=[(hook_name, lambda value, hook: seen.append(value.clone()))]):  # noqa: ARG005
        try:
            written = pair._generate_tokens(
                tokens, {**options, "max_new_tokens": _N_STEPS, "use_past_kv_cache": use_cache}
            )
            steps = torch.cat(seen, 1) if use_cache else seen[-1]
        except _FAULTS as error:
            logger.debug("generation failed: %s", error)
            return False
        seen.clear()
        logits = pair(written[:, :-1])
    [whole] = seen
    if steps.shape != whole.shape:
        return False
    tolerance = 0.2 if pair.metadata.dtype in ("bfloat16", "float16") else 1e-3
    scale = whole.abs().max().clamp(min=1e-12)
    chosen = logits[:, _N_PROMPT - 1 :]
    # The token written is among the best: rounding may exchange two that are as good.
    short = chosen.amax(-1) - chosen.gather(-1, written[:, _N_PROMPT:, None])[..., 0]
    return bool(
        (steps - whole).abs().max() <= tolerance * scale
        and short.max() <= tolerance * chosen.std().clamp(min=1e-12)
    )
