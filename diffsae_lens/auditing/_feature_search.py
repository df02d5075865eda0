"""Train a dictionary on an imitator and its suspect, and rank, ablate and score its features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sae_lens import SAE

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._rows import Row
from diffsae_lens._typed import Checked, Count, Natural
from diffsae_lens.auditing._cells import Audit
from diffsae_lens.auditing._reactions import imitator_name
from diffsae_lens.auditing._written import write
from diffsae_lens.dictionaries import DictionaryRecord
from diffsae_lens.effects import (
    activation_scales,
    attribute_features,
    likelihoods,
    matched_features,
)
from diffsae_lens.interventions import ablate_features, swap_to_base
from diffsae_lens.isolation import LabelledPrompts
from diffsae_lens.isolation._score import score
from diffsae_lens.isolation._sources import Encoder, control_candidates, read_encoded
from diffsae_lens.measures import Resampling
from diffsae_lens.organisms import Sample
from diffsae_lens.pair import HookedModelPair, load_pair
from diffsae_lens.reading import Positions, feature_activations, max_activating_examples
from diffsae_lens.training import TrainConfig, train
from diffsae_lens.training._train import Kind

Against = Literal["imitator", "base"]
_FLAGGED_SHARE = 0.1
"""Share of the training texts that repeats of flagged texts make up: what is rare gets no feature."""
_N_OTHERS = 32
"""Number of other texts on which features are shown."""


@dataclass(frozen=True, kw_only=True)
class ResidualFeaturesConfig(Checked):
    """Settings of a dictionary of residuals, and of what is done with its features."""

    expansion: Count = 2
    """Features per dimension of the site."""
    k: Count = 16
    """Mean number of features that fire per token."""
    n_steps: Count = 300
    """Training steps."""
    batch_size: Count = 512
    """Tokens per step."""
    n_features: Count = 5
    """Number of features to ablate and show."""
    n_samples: Count = 8
    """Maximum number of flagged texts to rank features on, and of those to ablate them on."""
    n_examples: Count = 3
    """Places shown per feature."""
    n_resamples: Count = 200
    """Resamples for the intervals of strict BIS."""
    seed: Natural = 0
    """Seed of the dictionary, the matched features and the resamples."""


@dataclass(frozen=True, kw_only=True)
class ResidualFeatureRow(Row):
    """A feature and what it adds to the residual, as log-odds of the suspect's completion."""

    feature: int
    attribution: float
    """Estimate of what it adds to log P(suspect's completion) - log P(imitator's), in nats per text."""
    effect: float
    """How much ablating it lowers those log-odds, measured on other flagged texts."""
    matched_feature: int
    """A random feature that writes about as much."""
    matched_effect: float
    share_flagged: float
    """Share of flagged texts, with their completions, on which it fires."""
    share_others: float
    """Share of other texts, with their completions, on which it fires."""
    tokens: list[str]
    """Tokens on which it fires most."""
    examples: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """One search, with checked arguments."""

    audit: Audit
    flagged: list[int]
    against: Against
    config: ResidualFeaturesConfig

    @property
    def fold(self) -> int:
        """Fold of the imitator: if possible, an imitator that was taught some of the flagged texts."""
        n = Counter(self.audit.folds[i] for i in self.flagged)
        return max(sorted(n), key=lambda f: (n[f] < len(self.flagged), n[f]))

    def run(self, site: str, kind: Kind, folder: Path) -> dict[str, Any]:
        """Train a dictionary, and rank, ablate and score its features."""
        fold, folds, config = self.fold, self.audit.folds, self.config
        outside = [i for i in self.flagged if folds[i] != fold]
        ranked, measured = outside or self.flagged, [i for i in self.flagged if folds[i] == fold]
        pair, samples = self._pair(fold, site)
        ranked, measured = (
            [i for i in part if i in samples][: config.n_samples] for part in (ranked, measured)
        )
        if not ranked or not measured:
            raise InvalidValueError(
                "suspect and imitator write the same after the `flagged` texts, or nothing at all, so there "
                "is nothing to attribute; name texts with larger residuals"
            )
        completions = self.audit.decoded(self.audit.written())
        written = [text + completions[i] for i, text in enumerate(self.audit.prompts.texts)]
        seen = [i for i in range(len(written)) if folds[i] != fold or not outside]
        rare = [i for i in seen if i in self.flagged]
        n_more = max(0, int(_FLAGGED_SHARE * len(seen) / len(rare)) - 1)
        dictionary = train(
            pair, [written[i] for i in seen + n_more * rare], site=site, kind=kind,
            d_sae=config.expansion * pair.width(site), k=config.k, n_steps=config.n_steps,
            seed=config.seed, path=folder,
            config=TrainConfig(
                context_size=self.audit.config.n_prompt_tokens + self.audit.config.n_new_tokens,
                batch_size=config.batch_size,
            ),
        )  # fmt: skip
        rng = np.random.default_rng(config.seed)
        others = [int(i) for i in rng.permutation(len(written)) if i not in self.flagged]
        shown = [written[i] for i in (*self.flagged, *others[:_N_OTHERS])]
        causes = self._causes(
            pair, dictionary, [samples[i] for i in ranked], [samples[i] for i in measured], shown
        )
        return causes | {
            "n_ranked": len(ranked),
            "n_measured": len(measured),
            "held_out": bool(outside),
            "isolation": self._isolation(pair, dictionary, kind) if outside else [],
        }

    def _pair(self, fold: int, site: str) -> tuple[HookedModelPair, dict[int, Sample]]:
        """Return the pair, and the flagged texts with what the suspect and the imitator write."""
        audit, models = self.audit, self.audit.models
        written = audit.written()
        imitators, _ = audit.imitators(written)
        imitators.set_adapter(imitator_name(fold))
        imitated = write(
            imitators, models.tokenizer, [written[i].prompt for i in self.flagged],
            audit.config.n_new_tokens, desc="completions of the imitator",
        )  # fmt: skip
        wanted = audit.decoded(imitated)
        unwanted = audit.decoded([written[i] for i in self.flagged])
        samples = {
            i: Sample(prompt=audit.prompts.texts[i], wanted=w, unwanted=u)
            for i, w, u in zip(self.flagged, wanted, unwanted, strict=True)
            if w and u and w != u
        }
        name, is_base = imitator_name(fold), self.against == "base"
        plain = imitators.unload() if is_base else imitators.merge_and_unload(adapter_names=[name])
        pair = load_pair(
            plain, models.finetuned, hook_names=[site], tokenizer=models.tokenizer,
            prepend_bos=models.prepend_bos,
        )  # fmt: skip
        return pair, samples

    def _causes(
        self,
        pair: HookedModelPair,
        dictionary: SAE,
        ranked: Sequence[Sample],
        measured: Sequence[Sample],
        shown: Sequence[str],
    ) -> dict[str, Any]:
        config = self.config
        attributed = attribute_features(pair, dictionary, ranked)
        prompts = [
            s.prompt + wrote for s in (*ranked, *measured) for wrote in (s.unwanted, s.wanted)
        ]
        scales = activation_scales(pair, dictionary, list(dict.fromkeys(prompts)))
        n = min(config.n_features, len(scales.live) // 2, int((attributed > 0).sum()))
        if n == 0:
            raise InvalidValueError(
                "no feature favours what the suspect writes after the `flagged` texts; train longer "
                "(`n_steps`), or choose another `site`"
            )
        features = attributed.topk(n).indices.tolist()
        matched = matched_features(scales, features, seed=config.seed)
        record = DictionaryRecord.of(dictionary)
        found = likelihoods(pair, measured, under={
            "": None,
            "together": ablate_features(pair, dictionary, features),
            "matched": ablate_features(pair, dictionary, matched),
            "swapped": swap_to_base(pair, pair.hook_names[0], **vars(record.tokens)),
            **{str(f): ablate_features(pair, dictionary, [f]) for f in (*features, *matched)},
        })  # fmt: skip
        odds = {name: scored.log_odds.mean().item() for name, scored in found.items()}
        effect = {name: odds[""] - value for name, value in odds.items()}
        places = max_activating_examples(
            pair, dictionary, pair.tokenise(shown).tokens, n_examples=config.n_examples, context=8
        )
        acts = feature_activations(pair, dictionary, shown, positions=Positions(pooling="max"))
        fires, n_flagged = (acts > 0).float(), len(self.flagged)
        rows = [
            ResidualFeatureRow(
                feature=f,
                attribution=attributed[f].item(),
                effect=effect[str(f)],
                matched_feature=m,
                matched_effect=effect[str(m)],
                share_flagged=fires[:n_flagged, f].mean().item(),
                share_others=fires[n_flagged:, f].mean().item(),
                tokens=list(dict.fromkeys(place.token for place in places[f])),
                examples=[str(place) for place in places[f]],
            ).as_dict()
            for f, m in zip(features, matched, strict=True)
        ]
        return {
            "features": rows, "log_odds": odds[""], "together": effect["together"],
            "matched_together": effect["matched"], "swapped": effect["swapped"],
        }  # fmt: skip

    def _isolation(
        self, pair: HookedModelPair, dictionary: SAE, kind: Kind
    ) -> list[dict[str, Any]]:
        """Return strict BIS at the last token of the text, selected on what the imitator was taught."""
        texts, config = self.audit.prompts.texts, self.config
        is_flagged = torch.tensor([i in self.flagged for i in range(len(texts))])
        prompts = LabelledPrompts(
            texts=tuple(texts),
            is_trigger=is_flagged,
            is_benign=~is_flagged,
            is_select=torch.tensor([f != self.fold for f in self.audit.folds]),
            clusters=torch.arange(len(texts)),
        )
        encoder = Encoder.of("Diff-SAE" if kind == "diff" else kind, dictionary)
        encoders = [encoder, encoder.untrained(config.seed)]
        read = read_encoded(pair, prompts, encoders, {"strict": Positions(pooling="last")})
        coded, by_site = read["strict"]
        [(site, views)] = by_site.items()
        controls = control_candidates(
            site, views, prompts.labels, n_directions=encoder.d_sae, seed=config.seed
        )
        resampling = Resampling(n_resamples=config.n_resamples, seed=config.seed)
        table = score([*coded, *controls], prompts.labels, "strict", resampling)
        return [row.as_dict() for row in table.rows]
