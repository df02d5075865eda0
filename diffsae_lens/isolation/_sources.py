"""What is scored: features of dictionaries and controls, on a pair's prompts and on the base alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from diffsae_lens._checks import check_items
from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.isolation._controls import (
    Evidence,
    next_token_kl,
    standard_controls,
    text_match,
    untrained_encoder,
    view_readers,
)
from diffsae_lens.isolation._labels import LabelledPrompts, Labels
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy
from diffsae_lens.reading._prompts import OnLogits, Positions, Reader, read_prompts
from diffsae_lens.results import ScoreKind

VIEWS_OF_CONTROLS = ("diff", "base", "finetuned")


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A dictionary or control to score, with the fields of its row; see `ScoreRow`."""

    name: str
    kind: ScoreKind
    control: str | None = None
    is_floor: bool = False
    is_fitted: bool = False
    hook: VirtualHook | None = None
    """The hook point it reads; None if it reads only texts or outputs."""
    dictionary: str | None = None
    control_of: str | None = None
    seed: int | None = None
    acts: Float[Tensor, "text n_features"]
    """Feature activations on the pair."""
    base_acts: Float[Tensor, "text n_base_features"]
    """Feature activations on the base model alone."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that identify its row."""
        said = {n: v for n, v in vars(self).items() if n not in ("hook", "acts", "base_acts")}
        return {
            **said,
            "hook_name": self.hook and self.hook.name,
            "layer": self.hook and self.hook.layer,
            "n_features": self.acts.shape[1],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A dictionary to encode with, or an untrained one of its shape."""

    dictionary: str
    hook: VirtualHook
    seed: int | None
    d_in: int
    d_sae: int
    k: int
    """Number of active features per token: the target, or the number at the end of training."""
    encode: Callable[[Tensor], Tensor]
    policy: TokenPolicy = EVERY_TOKEN
    identity: Mapping[str, Any]
    """`name`, `kind` and the other fields that identify its row."""

    @classmethod
    def of(cls, name: str, dictionary: SAE, *, seed: int | None = None) -> "Encoder":
        """Describe a dictionary; `seed` is used if its record has none."""
        cfg, record = dictionary.cfg, DictionaryRecord.of(dictionary)
        return cls(
            dictionary=name,
            hook=VirtualHook.parse(record.hook_name or ""),
            seed=seed if record.seed is None else record.seed,
            d_in=cfg.d_in,
            d_sae=cfg.d_sae,
            k=max(1, min(round(float(record.k or record.l0 or 32)), cfg.d_sae)),
            encode=dictionary.encode,
            policy=record.tokens,
            identity={"name": name, "kind": "dictionary"},
        )

    def encode_base(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_sae"]:
        """Encode the base's activation in place of the difference, or of both models' activations."""
        return self.encode(self.hook.spec.of_base(x))

    def untrained(self, seed: int) -> "Encoder":
        """Return an untrained dictionary of this shape, sparsity and seed."""
        encode = untrained_encoder(self.d_in, self.d_sae, self.k, seed=seed + (self.seed or 0))
        identity = {
            "name": f"untrained {self.dictionary}",
            "kind": "untrained dictionary",
            "control": "untrained dictionary",
            "control_of": self.dictionary,
            "is_floor": True,
        }
        return replace(self, encode=encode, identity=identity)

    def on_null_pair(self, name: str) -> "Encoder":
        """Return the dictionary with the identity of its row on a pair without a difference."""
        identity = {
            "name": f"{self.dictionary} on {name}",
            "kind": "null pair",
            "control_of": self.dictionary,
        }
        return replace(self, identity=identity)

    def candidate(self, acts: Tensor, base_acts: Tensor) -> Candidate:
        """Return a candidate with this encoder's codes of the texts."""
        return Candidate(
            **self.identity,
            hook=self.hook,
            dictionary=self.dictionary,
            seed=self.seed,
            acts=acts,
            base_acts=base_acts,
        )


def encoders_of(
    dictionaries: Mapping[str, SAE | Sequence[SAE]], check: Callable[[SAE], Any]
) -> list[tuple[SAE, Encoder]]:
    """Describe dictionaries that pass a check.

    Raises:
        TypeError: not a mapping of names to dictionaries.
        ValueError: no dictionaries, or one that does not pass.
    """
    if not isinstance(dictionaries, Mapping):
        raise InvalidTypeError(
            f"`dictionaries` must be a mapping of names, got {type(dictionaries).__name__}; name each"
        )
    found: list[tuple[SAE, Encoder]] = []
    for name, given in dictionaries.items():
        if not isinstance(name, str):
            raise InvalidTypeError(f"`dictionaries` must have texts for names, got {name!r}")
        several = [given] if isinstance(given, SAE) else given
        trained = check_items(f"dictionaries[{name!r}]", several, SAE)
        for i, dictionary in enumerate(trained):
            check(dictionary)
            seed = i if len(trained) > 1 else None
            found.append((dictionary, Encoder.of(name, dictionary, seed=seed)))
    if not found:
        raise InvalidValueError("`dictionaries` is empty: name at least one")
    return found


def control_candidates(
    site: str, by_view: Mapping[str, Tensor], labels: Labels, *, n_directions: int, seed: int
) -> Iterator[Candidate]:
    """Yield the controls that read a site's activations and need no dictionary."""
    evidence = Evidence(
        by_view=by_view,
        is_trigger=labels.is_trigger,
        is_benign=labels.is_benign,
        is_select=labels.is_select,
    )
    for control in standard_controls(n_directions=n_directions, seed=seed):
        yield Candidate(
            name=control.name,
            kind="control",
            control=control.name,
            is_floor=not control.is_fitted,
            is_fitted=control.is_fitted,
            hook=VirtualHook(site, control.view),
            acts=control.features(evidence, control.view),
            base_acts=control.features(evidence, "base"),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSource:
    """The tokens of a pair's prompts, read once for all poolings."""

    pair: HookedModelPair
    prompts: LabelledPrompts
    encoders: Sequence[Encoder]
    seed: int
    """Seed of untrained dictionaries and random directions."""

    def candidates(self, poolings: Mapping[str, Positions]) -> dict[str, list[Candidate]]:
        """Return all candidates, by the name of each pooling."""
        shapes: dict[tuple[Any, ...], Encoder] = {}
        for e in self.encoders:
            shapes.setdefault((e.hook, e.d_sae, e.k, e.seed), e)
        encoders = [*self.encoders, *(e.untrained(self.seed) for e in shapes.values())]
        kl = torch.zeros(len(self.prompts.texts), 1)

        def compare(indices: list[int], texts: TokenisedTexts, both: tuple[Tensor, Tensor]) -> None:
            kl[indices, 0] = next_token_kl(texts, both)

        read = read_encoded(self.pair, self.prompts, encoders, poolings, on_logits=compare)
        beside = self._beside_activations(kl)
        n_directions = max(e.d_sae for e in self.encoders)
        return {
            name: [
                *coded,
                *(
                    candidate
                    for site, views in by_site.items()
                    for candidate in control_candidates(
                        site, views, self.prompts.labels, n_directions=n_directions, seed=self.seed
                    )
                ),
                *beside,
            ]
            for name, (coded, by_site) in read.items()
        }

    def _beside_activations(self, kl: Tensor) -> list[Candidate]:
        """The controls that read only outputs or texts."""
        found = [_beside("next-token KL", "next-token KL", kl, 0 * kl)]
        if self.prompts.trigger_text is not None:
            has_it = text_match(self.prompts.texts, self.prompts.trigger_text)
            name = f"text search for {self.prompts.trigger_text!r}"
            found.append(_beside("text search", name, has_it, has_it))
        return found


def _beside(control: str, name: str, acts: Tensor, base_acts: Tensor) -> Candidate:
    return Candidate(name=name, kind="control", control=control, acts=acts, base_acts=base_acts)


def read_encoded(
    pair: HookedModelPair,
    prompts: LabelledPrompts,
    encoders: Sequence[Encoder],
    poolings: Mapping[str, Positions],
    *,
    on_logits: OnLogits | None = None,
) -> dict[str, tuple[list[Candidate], dict[str, dict[str, Tensor]]]]:
    """Encode the prompts' tokens and pool them, in one pass over the prompts; see `read_prompts`.

    Returns:
        By the name of each pooling, the encoders' candidates and, by site, the pooled activations that
        controls need, over the tokens that all dictionaries at the site read.
    """
    readers: dict[str, Reader] = {}
    sites = sorted({e.hook.site for e in encoders})
    for name, positions in poolings.items():
        for i, e in enumerate(encoders):
            for of, hook, encode in (
                ("pair", e.hook, e.encode),
                ("base", e.hook.with_view("base"), e.encode_base),
            ):
                readers[f"{name}|{of}|{i}"] = Reader(
                    hook_name=hook.name, positions=positions, encode=encode, policy=e.policy
                )
        for site in sites:
            policy = TokenPolicy.all_of(e.policy for e in encoders if e.hook.site == site)
            for view, reader in view_readers(site, positions, policy).items():
                readers[f"{name}|{site}|{view}"] = reader
    read = read_prompts(pair, prompts.texts, readers, on_logits=on_logits)
    return {
        name: (
            [
                e.candidate(read[f"{name}|pair|{i}"], read[f"{name}|base|{i}"])
                for i, e in enumerate(encoders)
            ],
            {
                site: {view: read[f"{name}|{site}|{view}"] for view in VIEWS_OF_CONTROLS}
                for site in sites
            },
        )
        for name in poolings
    }
