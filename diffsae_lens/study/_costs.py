"""What the cells of a study take on two CPU cores, estimated.

Fitted to what the embedded model took; larger models take longer in proportion to how many tokens they
read per second.
"""

from dataclasses import dataclass

from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.study._cells import Cost
from diffsae_lens.study._config import DictionarySpec, Draw, StudyConfig

EMBEDDED_TOKENS_PER_SECOND = 450
NOTHING = Cost(seconds=1, gigabytes=0.5)


@dataclass(frozen=True)
class Costs:
    """Of the cells of one study."""

    config: StudyConfig
    d_model: int

    @property
    def slower(self) -> float:
        """How much longer than with the embedded model."""
        return EMBEDDED_TOKENS_PER_SECOND / self.config.models.tokens_per_second

    def with_pair(self, seconds: int | float, *, more_gigabytes: int | float = 0) -> Cost:
        """Of a cell that runs both models."""
        gigabytes = 1.5 + 1.2 * self.slower + more_gigabytes
        return Cost(seconds=round(self.slower * seconds), gigabytes=gigabytes)

    def training(self, organism: OrganismConfig) -> Cost:
        """Of fine-tuning and measuring."""
        n_prompts = organism.n_steps * organism.batch_size
        return Cost(
            seconds=round(self.slower * (0.65 * n_prompts + 3 * self.config.models.n_measured)),
            gigabytes=round((4 if organism.lora_rank else 6) * max(1.0, self.slower), 1),
        )

    def reading(self, texts: Draw) -> Cost:
        """Of activations of whole texts."""
        return self.with_pair(texts.n_samples * 160 / EMBEDDED_TOKENS_PER_SECOND)

    def published(self, spec: DictionarySpec) -> Cost:
        """Of a dense dictionary."""
        pooled = self.config.pooled
        n_vectors = 0 if pooled is None else pooled.n_passes * pooled.texts.n_samples
        n_weights = spec.n_weights(self.d_model)
        operations = 6 * n_vectors * n_weights  # 2 products forward, twice that backward
        return Cost(
            seconds=round(operations / 1.05e11), gigabytes=round(16 * n_weights / 1e9 + 1, 1)
        )

    def on_tokens(self) -> Cost:
        """Of the dictionaries of one layer that are trained in lockstep."""
        n_steps = 0 if self.config.tokens is None else self.config.tokens.n_steps
        return Cost(seconds=round(0.2 * n_steps * (self.d_model / 576) ** 2), gigabytes=2.5)

    def scores(self) -> Cost:
        """Of the scores of prompts."""
        scores = self.config.scores
        n = 0 if scores is None else scores.select.n_samples + scores.test.n_samples
        return self.with_pair(0.55 * n, more_gigabytes=1.5)

    def pooled_scores(self) -> Cost:
        """Of the scores on the texts that were trained on."""
        pooled, scores = self.config.pooled, self.config.scores
        if pooled is None or scores is None:
            return NOTHING
        n_features = self.d_model * sum(spec.expansion for spec in pooled.dictionaries)
        resampled = pooled.texts.n_samples * n_features * scores.n_resamples
        return Cost(seconds=round(5.5e-9 * resampled), gigabytes=3.0)

    def choosing(self) -> Cost:
        """Of the order of the features."""
        features = self.config.features
        n = 0 if features is None else features.n_rounds * features.select.n_trigger
        return self.with_pair(1.2 * self._n_dictionaries * n, more_gigabytes=1.5)

    def causes(self) -> Cost:
        """Of completions under interventions."""
        features, causes = self.config.features, self.config.causes
        if features is None or causes is None:
            return NOTHING
        n_rows = 2 + 2 * len(features.counts) * self._n_dictionaries
        return self.with_pair(1.3 * n_rows * causes.test.n_samples, more_gigabytes=1.5)

    @property
    def _n_dictionaries(self) -> int:
        parts = (self.config.pooled, self.config.tokens)
        return sum(len(part.dictionaries) for part in parts if part is not None)
