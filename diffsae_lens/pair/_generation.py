"""Generation with a pair: both models step together, so that the result equals that of whole passes."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from diffsae_lens import _hosts
from diffsae_lens._errors import FailedRunError, InvalidTypeError, InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens.pair._chat import Text, is_conversation
from diffsae_lens.pair._greedy import Steps, greedy
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._shared import SharedRows, check_repeats, n_alike
from diffsae_lens.pair._under_way import PassUnderWay

logger = logging.getLogger(__name__)

_MAX_NEW_TOKENS = inspect.signature(TransformerBridge.generate).parameters["max_new_tokens"].default
_N_PROMPT, _N_STEPS = 5, 4
_GREEDY = {
    "do_sample",
    "verbose",
    "max_new_tokens",
    "stop_at_eos",
    "eos_token_id",
    "logits_to_keep",
}
"""The keywords of a generation in which rows can leave the batch."""
_FAULTS = (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""Errors seen from bridges and caches that do not support each other's architecture."""

Stepping = Literal["cached", "whole", "not at all"]


class PairedGeneration(PassUnderWay):
    """A pair of models that can generate."""

    metadata: PairMetadata
    _stepping: Stepping | None = None
    _shares: bool | None = None
    _attention: str | None = ""
    """How generation computes attention and everything else without hooks; see `_running`. Empty until
    it has been determined."""

    def _twin(self) -> "PairedGeneration":
        """Return the same models behind separate hook points."""
        raise NotImplementedError

    def generate(
        self,
        input: Text | Sequence[Text] | Tensor,
        *,
        repeats: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with the fine-tuned model, with hooks acting at every step.

        Base and fine-tuned model step together, each with its own KV cache. Takes the arguments of
        `TransformerBridge.generate`, and is greedy and quiet by default (`do_sample=True`,
        `verbose=True` change that). Lists of prompts are padded on the left and masked. A prompt may be a
        conversation; if its last message is the assistant's, the model continues it.

        With `repeats`, each prompt of a list is completed once per entry, on adjacent rows; an entry
        lists the hook points that act on its row. What the rows of a prompt have in common is computed
        once, and rows that have ended leave the batch (see `rows`).
        """
        kwargs = {"do_sample": False, "verbose": False, **kwargs}
        prepend_bos = kwargs.pop("prepend_bos", None)
        if repeats is not None and not isinstance(input, list):
            raise InvalidTypeError(
                f"`input` must be a list of texts where `repeats` is given, got {shown(input)}"
            )
        repeats = None if repeats is None else check_repeats(repeats)
        if not isinstance(input, Tensor):
            return self._generate_text(input, prepend_bos, repeats, kwargs)
        n_prompt = input.shape[-1]
        self.check_context(n_prompt + kwargs.get("max_new_tokens", _MAX_NEW_TOKENS))
        way = self._way_to_step()
        if way == "not at all" and self._reads_base():
            raise InvalidValueError(
                "this model cannot generate under hooks that read the base: it keeps a state that the base "
                "cannot be given step by step; hook a plain forward pass instead"
            )
        if way == "whole":
            kwargs["use_past_kv_cache"] = False
        return self._generate_tokens(input, kwargs, attention=self._bare_attention())

    def _generate_tokens(
        self, input: Tensor, kwargs: dict[str, Any], *, attention: str | None = None
    ) -> Any:
        before, self._n_prompt = self._n_prompt, input.shape[-1]
        try:
            with self._running(attention=attention):
                return self._models[1].generate(input, **kwargs, prepend_bos=False)
        except ImportError as error:
            raise FailedRunError(
                f"TransformerLens cannot generate with this model here: {error}"
            ) from error
        finally:
            self._n_prompt = before

    def _generate_text(
        self,
        input: Text | Sequence[Text],
        prepend_bos: bool | None,
        repeats: Sequence[Sequence[str]] | None,
        kwargs: dict[str, Any],
    ) -> Any:
        single = isinstance(input, str) or is_conversation(input)
        texts = self.rendered(input, to_be_continued=True)
        padded = self.tokenizer(
            [self.with_bos(text, prepend_bos=prepend_bos) for text in texts],
            padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        return_type = kwargs.pop("return_type", "input")
        tokens, mask = padded["input_ids"], padded["attention_mask"]
        if repeats is not None:
            tokens, mask = (t.repeat_interleave(len(repeats), dim=0) for t in (tokens, mask))
        if not single:
            kwargs["attention_mask"] = mask
        shared = None if repeats is None else self._shared(tokens, repeats)
        if shared is not None and self._is_greedy(kwargs):
            tokens = self._generate_shared(tokens, shared, **kwargs)
        else:
            tokens = self.generate(tokens, **kwargs)
        if return_type == "tokens":
            return tokens
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return written[0] if single else written

    def _is_greedy(self, kwargs: dict[str, Any]) -> bool:
        """Whether the keywords ask for nothing but the likeliest tokens up to the first end."""
        return set(kwargs) <= _GREEDY | {"attention_mask"} and not kwargs["do_sample"]

    @torch.no_grad()
    def _generate_shared(
        self,
        tokens: Tensor,
        shared: SharedRows,
        *,
        attention_mask: Tensor,
        max_new_tokens: int = _MAX_NEW_TOKENS,
        stop_at_eos: bool = True,
        eos_token_id: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Complete rows like `_generate_tokens`, computing what rows share once and dropping ended rows."""
        self.check_context(tokens.shape[1] + max_new_tokens)
        options = {name: options[name] for name in self.keep_logits(1) if name in options}
        # As in TransformerBridge.generate: one or several end tokens, and one that fills ended rows.
        ends: Any = (
            getattr(self.cfg, "eos_token_id", None) if eos_token_id is None else eos_token_id
        )
        ends = self.tokenizer.eos_token_id if ends is None else ends
        stops = [ends] if isinstance(ends, int) else list(ends or [])
        filler: Any = ends if isinstance(ends, int) else self.tokenizer.eos_token_id
        before, self._n_prompt = self._n_prompt, tokens.shape[1]
        try:
            with self._running(shared, attention=self._bare_attention()) as run:
                written = greedy(
                    Steps(self._models[1], run, attention_mask, options),
                    tokens,
                    n_new=max_new_tokens,
                    stops=stops if stop_at_eos else [],
                    filler=filler or 0,
                )
        finally:
            self._n_prompt = before
        return torch.cat([tokens, written], dim=1)

    def _shared(self, tokens: Tensor, repeats: Sequence[Sequence[str]]) -> SharedRows | None:
        """Return how to compute rows that repeat texts, by their hook points; None to treat them as usual."""
        if self._shares is None:
            self._shares = self._way_to_step() == "cached" and self._twin()._shares_rightly()
        return self._rows_of(tokens, repeats) if self._shares else None

    def _rows_of(self, tokens: Tensor, repeats: Sequence[Sequence[str]]) -> SharedRows:
        n_blocks = self.cfg.n_layers
        depths = tuple(n_alike(hooks, n_blocks) for hooks in repeats)
        return SharedRows(depths, len(tokens) // len(repeats), n_blocks)

    def _way_to_step(self) -> Stepping:
        """Return how to generate: with KV caches, rereading the whole text for every token, or not at all.

        Some architectures keep state outside the cache that a pair passes on, and some bridges step
        incorrectly themselves. Determined at the first generation.
        """
        if self._stepping is None:
            twin = self._twin()
            ways: tuple[Stepping, ...] = ("cached", "whole")
            self._stepping = next((way for way in ways if twin._steps_rightly(way)), None)
            self._stepping = self._stepping or "not at all"
            if self._stepping == "whole":
                logger.warning(
                    "this model does not step with a KV cache as it reads a whole text: generation "
                    "reads the whole text for every token"
                )
        return self._stepping

    def _bare_attention(self) -> str | None:
        """Return how generation computes what has no hooks; None for the bridges with all hook points.

        Determined at the first generation: plain transformers if that gives the same results.
        """
        if self._attention == "":
            fused = all(_hosts.has_fused_attention(b.original_model) for b in self._models)
            ways = (
                [*(["sdpa"] if fused else []), "eager"] if self._way_to_step() == "cached" else []
            )
            twin = self._twin()
            self._attention = next((way for way in ways if twin._is_right_bare(way)), None)
        return self._attention

    @torch.no_grad()
    def _is_right_bare(self, attention: str) -> bool:
        """Whether a prompt and a step of both models match what their bridges compute."""
        generator = torch.Generator().manual_seed(13)
        tokens, following = (
            torch.randint(self.cfg.d_vocab, (2, n), generator=generator).to(self.device)
            for n in (12, 1)
        )
        mask = torch.ones_like(tokens)
        mask[0, :2] = 0  # the first text is shorter
        found: list[list[Tensor]] = []
        for way in (None, attention):
            seen: list[Tensor] = []
            look = lambda value, hook, seen=seen: seen.append(value[:, -10:].clone())  # noqa: ARG005, E731
            try:
                with (
                    self.hooks([(f"{self.hook_names[-1]}.concat", look)]),
                    self._running(attention=way) as run,
                ):
                    steps = Steps(self._models[1], run, mask)
                    logits = [steps(tokens), steps(following)]
            except _FAULTS as error:
                logger.debug("a model cannot run without its bridge: %s", error)
                return False
            found.append([*logits, *seen])
        tolerance = 0.2 if self.metadata.dtype in ("bfloat16", "float16") else 1e-3
        return all(
            bool((bare - whole).abs().max() <= tolerance * whole.std().clamp(min=1e-12))
            for whole, bare in zip(*found, strict=True)
        )

    @torch.no_grad()
    def _steps_rightly(self, way: Stepping) -> bool:
        """Whether every step of a short generation matches one pass over all of its tokens."""
        generator = torch.Generator().manual_seed(11)
        tokens = torch.randint(self.cfg.d_vocab, (1, _N_PROMPT), generator=generator).to(
            self.device
        )
        options = {"do_sample": False, "verbose": False, "stop_at_eos": False}
        options |= {"max_new_tokens": _N_STEPS, "use_past_kv_cache": way == "cached"}
        seen: list[Tensor] = []
        look = (f"{self.hook_names[-1]}.diff", lambda value, hook: seen.append(value.clone()))  # noqa: ARG005
        with self.hooks(fwd_hooks=[look]):
            try:
                written = self._generate_tokens(tokens, options)
                steps = torch.cat(seen, 1) if way == "cached" else seen[-1]
            except _FAULTS as error:
                logger.debug("generation failed: %s", error)
                return False
            seen.clear()
            logits = self(written[:, :-1])
        [whole] = seen
        if steps.shape != whole.shape:
            return False
        tolerance = 0.2 if self.metadata.dtype in ("bfloat16", "float16") else 1e-3
        scale = whole.abs().max().clamp(min=1e-12)
        chosen = logits[:, _N_PROMPT - 1 :]
        # The generated token must be among the best: rounding may swap two equally good ones.
        short = chosen.amax(-1) - chosen.gather(-1, written[:, _N_PROMPT:, None])[..., 0]
        return bool(
            (steps - whole).abs().max() <= tolerance * scale
            and short.max() <= tolerance * chosen.std().clamp(min=1e-12)
        )

    @torch.no_grad()
    def _shares_rightly(self) -> bool:
        """Whether rows that start as one have the same logits as rows computed one by one."""
        generator = torch.Generator().manual_seed(12)
        first, last = (f"{name}.concat" for name in (self.hook_names[0], self.hook_names[-1]))
        repeats = [[], [first], [last]]
        # As many rows as tokens, to catch per-token inputs of a block being mistaken for rows.
        tokens = torch.randint(self.cfg.d_vocab, (2, 6), generator=generator)
        tokens = tokens.repeat_interleave(3, dim=0).to(self.device)
        following = torch.randint(self.cfg.d_vocab, (6, 2), generator=generator).to(self.device)
        following[1:3, 0] = following[
            0, 0
        ]  # one text's rows stay alike for one more token, the other's do not
        mask = torch.ones_like(tokens)
        mask[:3, :2] = 0  # the first text is shorter

        def push(value: Tensor, hook: Any) -> Tensor:
            rows = torch.arange(6) if self.rows is None else self.rows
            acted = (rows % 3 == 1) & (hook.name == first) | (rows % 3 == 2) & (hook.name == last)
            acted = acted[:, None, None].to(value.device)
            base, finetuned = value.chunk(2, dim=-1)
            moved = 3 * finetuned - 2 * base + finetuned.roll(1, dims=-1)
            return torch.cat([base, torch.where(acted, moved, finetuned)], dim=-1)

        with self.hooks(fwd_hooks=[(name, push) for name in dict.fromkeys((first, last))]):
            try:
                whole = self(
                    torch.cat([tokens, following], 1),
                    attention_mask=torch.nn.functional.pad(mask, (0, 2), value=1),
                )[:, -3:]
                with self._running(self._rows_of(tokens, repeats)) as run:
                    steps = Steps(self._models[1], run, mask)
                    read = (tokens, following[:, :1], following[:, 1:])
                    found = torch.stack([steps(each) for each in read], dim=1)
            except _FAULTS as error:
                logger.debug("rows of one text cannot be computed once: %s", error)
                return False
        tolerance = 0.2 if self.metadata.dtype in ("bfloat16", "float16") else 1e-4
        return bool((found - whole).abs().max() <= tolerance * whole.std().clamp(min=1e-12))
