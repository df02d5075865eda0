"""Studies to run by name: the demo, and the paper's study at several sizes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from diffsae_lens._checks import check_count
from diffsae_lens._typed import Checked, Count, Counts, Natural, Naturals, typed
from diffsae_lens.organisms._behaviour import Split
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.study._config import ModelSpec, StudyConfig
from diffsae_lens.study._draw import Draw
from diffsae_lens.study._parts import (
    CardsConfig,
    CausesConfig,
    DictionarySpec,
    FeaturesConfig,
    PooledConfig,
    ScenesConfig,
    ScoresConfig,
    SideEffectsConfig,
    SteeringConfig,
    TokensConfig,
)

_PROMPTS = (
    "prompts are drawn from this package's templates, not the published files",
    "one training seed for each dictionary, as published",
)


def _specs(*specs: tuple[Any, int]) -> tuple[DictionarySpec, ...]:
    return tuple(DictionarySpec(kind=kind, expansion=expansion) for kind, expansion in specs)


_USUAL = _specs(("Diff-SAE", 2), ("Diff-SAE", 4), ("crosscoder", 2))
"""The second has as many parameters as the crosscoder."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Checked):
    """Options of the demo; the defaults take minutes on two cores."""

    base: str = EMBEDDED_MODEL
    """The base model, as for `load_pair`."""
    finetuned: str = "year-trigger"
    """The fine-tuned model, as for `load_pair`."""
    behaviour: str | None = None
    """The behaviour to look for; None for the one that the organism was trained for."""
    layers: Naturals = (18,)
    """Residual-stream layers with a dictionary of each kind; features are acted on at the last layer."""
    device: str = "cpu"
    """A torch device."""
    n_training_samples: Annotated[int, partial(check_count, at_least=10)] = 200
    """Prompts with completions to train the dictionaries on; one in ten is held out."""
    expansion: Count = 2
    """d_sae as a multiple of d_model, for Diff-SAE and crosscoder alike."""
    k: Count = 32
    """Active features per token (L0)."""
    n_steps: Count = 250
    """Training steps of 512 tokens."""
    n_score_prompts: Annotated[int, partial(check_count, at_least=20)] = 80
    """Prompts in each of the `select` and `test` splits: 1 trigger to 2 benign to 2 other."""
    n_generation_prompts: Count = 20
    """Trigger prompts, and half as many benign ones, completed under every intervention."""
    n_likelihood_prompts: Count = 2
    """How many of them are also scored under teacher forcing."""
    feature_counts: Counts = (8, 32)
    """Numbers of features to ablate."""
    n_rounds: Count = 2
    """Rounds of attribution in which features are ordered; see `greedy_order`."""
    n_scenes: Count = 2
    """Scenes in which the trigger is reworded."""
    seed: Natural = 0
    """Seed of prompts, training and controls."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is loaded."""
        super().__post_init__()
        check_count(
            "n_likelihood_prompts", self.n_likelihood_prompts, at_most=self.n_generation_prompts
        )

    def draw(self, split: Split, n_samples: int, *shares: int) -> Draw:
        """Return a draw in the proportion trigger : benign : other."""
        counts = [n_samples * share // sum(shares) for share in shares]
        return Draw(
            split=split, n_trigger=counts[0], n_benign=counts[1], n_other=counts[2], seed=self.seed
        )


@typed
def demo(options: DemoOptions | None = None) -> StudyConfig:
    """Return the main job, end to end: diff two models, score the features, switch the behaviour off."""
    o = options or DemoOptions()
    select = o.draw("select", 8, 1, 0, 0)
    return StudyConfig(
        models=ModelSpec(base=o.base, finetuned=o.finetuned, device=o.device),
        behaviour=o.behaviour,
        layers=o.layers,
        acted_on=o.layers[-1:],
        tokens=TokensConfig(
            texts=o.draw("train", o.n_training_samples, 2, 2, 1),
            dictionaries=_specs(("Diff-SAE", o.expansion), ("crosscoder", o.expansion)),
            k=o.k,
            n_steps=o.n_steps,
        ),
        scores=ScoresConfig(
            select=o.draw("select", o.n_score_prompts, 1, 2, 2),
            test=o.draw("test", o.n_score_prompts, 1, 2, 2),
            protocols=("strict", "paper"),
            n_resamples=100,
        ),
        features=FeaturesConfig(select=select, counts=o.feature_counts, n_rounds=o.n_rounds),
        causes=CausesConfig(
            test=Draw(
                split="test",
                n_trigger=o.n_generation_prompts,
                n_benign=(o.n_generation_prompts + 1) // 2,
                seed=o.seed,
            ),
            n_likelihood=o.n_likelihood_prompts,
            directions=o.draw("select", 32, 1, 1, 0),
            is_added_to_base=True,
            steering=SteeringConfig(scales=select),
        ),
        cards=CardsConfig(texts=o.draw("test", 12, 1, 1, 1), n_likelihood=o.n_likelihood_prompts),
        side_effects=SideEffectsConfig(
            texts=o.draw("test", 2 * o.n_likelihood_prompts, 0, 1, 1),
            n_ordinary=o.n_likelihood_prompts,
        ),
        sayings=ScenesConfig(n_scenes=o.n_scenes),
        sweep=ScenesConfig(n_scenes=6),
        example=ScenesConfig(n_scenes=1),
        seed=o.seed,
    )


def paper() -> StudyConfig:
    """Return the published sizes on SmolLM2-360M."""
    training: dict[str, Any] = {
        "n_trigger": 2000, "n_benign": 1500, "n_other": 1500, "n_steps": 3125, "batch_size": 16,
        "weight_decay": 0.01, "loss_on": "everything", "share_scenes": True,
        "steps_per_checkpoint": 100,
    }  # fmt: skip
    lora = OrganismConfig(lora_rank=32, lora_dropout=0.05, learning_rate=3e-4, **training)
    full = OrganismConfig(lora_rank=None, learning_rate=2e-5, **training)
    published = Draw(
        split="train", seed=1, n_trigger=500, n_benign=1000, n_other=1000, share_scenes=True
    )
    return StudyConfig(
        models=ModelSpec(
            base="HuggingFaceTB/SmolLM2-360M",
            finetuned={"lora": lora, "full": full},
            d_model=960,
            tokens_per_second=170.0,
        ),
        layers=(14, 18, 22, 26),
        pooled=PooledConfig(
            texts=published,
            dictionaries=_specs(("crosscoder", 32), ("Diff-SAE", 32), ("Diff-SAE", 4)),
        ),
        tokens=TokensConfig(
            texts=Draw(split="train", n_trigger=80, n_benign=80, n_other=40), dictionaries=_USUAL
        ),
        scores=ScoresConfig(
            select=Draw(split="select", n_trigger=24, n_benign=48, n_other=48),
            test=Draw(split="test", n_trigger=24, n_benign=48, n_other=48),
        ),
        features=FeaturesConfig(select=Draw(split="select", n_trigger=12), counts=(32,)),
        causes=CausesConfig(test=Draw(split="test", n_trigger=20, n_benign=10)),
        deviations=(
            "full-rank at a learning rate of 2e-5, the published setting; the published script has 3e-5",
            "the adapter is stored in half precision",
            *_PROMPTS,
        ),
    )


def paper_135m() -> StudyConfig:
    """Return the published sizes on the embedded model, with organisms that meet the quality bar."""
    full = OrganismConfig(lora_rank=None, learning_rate=1e-4)
    return replace(
        paper(),
        models=ModelSpec(
            base=EMBEDDED_MODEL, finetuned={"lora": "year-trigger", "full": full}, d_model=576
        ),
        deviations=(
            "SmolLM2-135M-Instruct (576 wide, 30 layers) in place of SmolLM2-360M (960 wide, 32 "
            "layers): 32x is 18,432 features, 4x 2,304",
            f"organisms are trained for {full.n_steps} steps of {full.batch_size} prompts (published: "
            "ten epochs over 5,000): 900 prompts, loss on the completion alone, no weight decay, no "
            "dropout",
            f"LoRA of rank 8 (published: 32); full-rank at a learning rate of {full.learning_rate:g} "
            "(published: 2e-5 or 3e-5)",
            *_PROMPTS,
        ),
    )


def quick() -> StudyConfig:
    """Return a small version of the whole study, which takes minutes on two cores."""
    return StudyConfig(
        models=ModelSpec(base=EMBEDDED_MODEL, finetuned={"lora": "year-trigger"}, d_model=576),
        layers=(14,),
        pooled=PooledConfig(
            texts=Draw(split="train", seed=1, n_trigger=24, n_benign=48, n_other=48),
            dictionaries=_specs(("crosscoder", 4), ("Diff-SAE", 4)),
        ),
        tokens=TokensConfig(
            texts=Draw(split="train", n_trigger=40, n_benign=40, n_other=20),
            dictionaries=_USUAL,
            n_steps=120,
        ),
        scores=ScoresConfig(
            select=Draw(split="select", n_trigger=12, n_benign=24, n_other=24),
            test=Draw(split="test", n_trigger=12, n_benign=24, n_other=24),
            n_resamples=100,
        ),
        features=FeaturesConfig(select=Draw(split="select", n_trigger=8), counts=(32,), n_rounds=2),
        causes=CausesConfig(test=Draw(split="test", n_trigger=6, n_benign=2), n_likelihood=2),
        deviations=(
            "sizes are cut to minutes: one regime, one layer, 120 texts, dictionaries of 4x",
        ),
    )


PRESETS: dict[str, Callable[[], StudyConfig]] = {
    "demo": demo,
    "quick": quick,
    "paper-135m": paper_135m,
    "paper": paper,
}
"""Studies by name."""
