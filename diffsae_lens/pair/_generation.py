"""Generation with a pair: both models step together, in the way that computes what whole passes do."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from diffsae_lens._errors import FailedRunError, InvalidValueError
from diffsae_lens.pair._chat import Text, is_conversation
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._paired_pass import PairedPass
from diffsae_lens.pair._texts import PairedText

logger = logging.getLogger(__name__)

_MAX_NEW_TOKENS = inspect.signature(TransformerBridge.generate).parameters["max_new_tokens"].default
_N_PROMPT, _N_STEPS = 5, 4
_FAULTS = (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""What bridges and caches of architectures that do not go together were seen to raise."""

Stepping = Literal["cached", "whole", "not at all"]


class PairedGeneration(PairedText):
    """A pair of models that generates, and what hooks may ask about the pass under way."""

    metadata: PairMetadata
    hook_names: tuple[str, ...]
    _run: PairedPass | None = None
    _n_prompt: int | None = None
    _stepping: Stepping | None = None

    @property
    def attention_mask(self) -> Tensor | None:
        """That of the forward pass under way, `[batch, pos]`, for hooks to read; None without one."""
        return None if self._run is None else self._run.attention_mask

    @property
    def tokens(self) -> Tensor | None:
        """What the forward pass under way reads, `[batch, pos]`, for hooks; None without one."""
        return None if self._run is None else self._run.tokens

    @property
    def columns(self) -> Tensor | None:
        """Where in the (padded) sequence the tokens of the forward pass under way stand, `[pos]`."""
        return None if self._run is None else self._run.columns

    @property
    def positions(self) -> Tensor | None:
        """How many tokens of its row stand before each token of the pass under way, `[batch or 1, pos]`.

        Padding does not count and is -1; tokens that the KV cache holds count.
        """
        return None if self._run is None else self._run.positions

    @property
    def prompt_mask(self) -> Tensor | None:
        """Which tokens of the pass under way are of the prompt, if `forward` was told; else None."""
        return None if self._run is None else self._run.prompt_mask

    @property
    def n_prompt(self) -> int | None:
        """Columns of the (padded) prompt while `generate` runs; None in a plain forward pass."""
        return self._n_prompt

    @contextmanager
    def _running(self) -> Iterator[PairedPass]:
        """Have forward passes of the fine-tuned model show the pair's hook points."""
        raise NotImplementedError
        yield

    def _reads_base(self) -> bool:
        """Whether a hook in use needs the base to run."""
        raise NotImplementedError

    def _twin(self) -> "PairedGeneration":
        """The same models behind hook points of their own."""
        raise NotImplementedError

    def generate(self, input: Text | Sequence[Text] | Tensor, **kwargs: Any) -> Any:
        """Generate with the fine-tuned model, hooks acting at every step.

        Base and fine-tuned model step together, each with its own KV cache. Takes what
        `TransformerBridge.generate` takes, and is greedy and quiet unless told otherwise
        (`do_sample=True`, `verbose=True`). Lists of prompts are padded on the left and masked. A prompt
        may be a conversation; a last message of the assistant's is written on.
        """
        kwargs = {"do_sample": False, "verbose": False, **kwargs}
        prepend_bos = kwargs.pop("prepend_bos", None)
        if not isinstance(input, Tensor):
            return self._generate_text(input, prepend_bos, kwargs)
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
        return self._generate_tokens(input, kwargs)

    def _generate_tokens(self, input: Tensor, kwargs: dict[str, Any]) -> Any:
        before, self._n_prompt = self._n_prompt, input.shape[-1]
        try:
            with self._running():
                return self._models[1].generate(input, **kwargs, prepend_bos=False)
        except ImportError as error:
            raise FailedRunError(
                f"TransformerLens cannot generate with this model here: {error}"
            ) from error
        finally:
            self._n_prompt = before

    def _generate_text(
        self, input: Text | Sequence[Text], prepend_bos: bool | None, kwargs: dict[str, Any]
    ) -> Any:
        single = isinstance(input, str) or is_conversation(input)
        texts = self.rendered(input, to_be_continued=True)
        padded = self.tokenizer(
            [self.with_bos(text, prepend_bos=prepend_bos) for text in texts],
            padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        return_type = kwargs.pop("return_type", "input")
        if not single:
            kwargs["attention_mask"] = padded["attention_mask"]
        tokens = self.generate(padded["input_ids"], **kwargs)
        if return_type == "tokens":
            return tokens
        written = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return written[0] if single else written

    def _way_to_step(self) -> Stepping:
        """How to generate: with KV caches, reading the whole text for every token, or neither.

        Some architectures keep a state that is not in the cache a pair hands on, and some bridges step
        wrongly themselves. Found out at the first generation.
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

    @torch.no_grad()
    def _steps_rightly(self, way: Stepping) -> bool:
        """Generate a few tokens and compare every step with one pass over all of them."""
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
        # The token written is among the best: rounding may exchange two that are as good.
        short = chosen.amax(-1) - chosen.gather(-1, written[:, _N_PROMPT:, None])[..., 0]
        return bool(
            (steps - whole).abs().max() <= tolerance * scale
            and short.max() <= tolerance * chosen.std().clamp(min=1e-12)
        )
