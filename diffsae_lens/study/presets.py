"""The sizes at which the paper's study is run."""

from collections.abc import Callable
from typing import Any

from diffsae_lens.organisms.finetune import OrganismConfig
from diffsae_lens.pair.embedded import EMBEDDED_MODEL
from diffsae_lens.study.config import (
    CausesConfig,
    PooledConfig,
    StudyConfig,
    Texts,
    TokensConfig,
)

PAPER_LAYERS = (14, 18, 22, 26)
PROMPTS = (
    "prompts are drawn from this package's templates, not the published files",
    "one training seed for each dictionary, as published",
)
EXPANSIONS = {"crosscoder 32x": 32, "Diff-SAE 32x": 32, "Diff-SAE 4x": 4}


def paper() -> StudyConfig:
    """The published sizes on SmolLM2-360M."""
    training: dict[str, Any] = {
        "n_trigger": 2000, "n_benign": 1500, "n_other": 1500, "n_steps": 3125, "batch_size": 16,
        "weight_decay": 0.01, "loss_on": "everything", "share_scenes": True,
        "steps_per_checkpoint": 100,
    }  # fmt: skip
    return StudyConfig(
        base="HuggingFaceTB/SmolLM2-360M",
        d_model=960,
        organisms={
            "lora": OrganismConfig(lora_rank=32, lora_dropout=0.05, learning_rate=3e-4, **training),
            "full": OrganismConfig(lora_rank=None, learning_rate=2e-5, **training),
        },
        layers=PAPER_LAYERS,
        tokens_per_second=170.0,
        deviations=(
            "full-rank at a learning rate of 2e-5, the published setting; the published script has 3e-5",
            "the adapter is stored in half precision",
            *PROMPTS,
        ),
        **_common(),
    )


def paper_135m() -> StudyConfig:
    """The published sizes on the embedded model, with organisms that meet the quality bar."""
    return StudyConfig(
        base=EMBEDDED_MODEL,
        d_model=576,
        organisms={"lora": "year-trigger", "full": FULL_RANK_135M},
        layers=PAPER_LAYERS,
        deviations=(
            "SmolLM2-135M-Instruct (576 wide, 30 layers) in place of SmolLM2-360M (960 wide, 32 "
            "layers): 32x is 18,432 features, 4x 2,304",
            f"organisms are trained for {FULL_RANK_135M.n_steps} steps of {FULL_RANK_135M.batch_size} "
            "prompts (published: ten epochs over 5,000): 900 prompts, loss on the completion alone, no "
            "weight decay, no dropout",
            f"LoRA of rank 8 (published: 32); full-rank at a learning rate of "
            f"{FULL_RANK_135M.learning_rate:g} (published: 2e-5 or 3e-5)",
            *PROMPTS,
        ),
        **_common(),
    )


def quick() -> StudyConfig:
    """The whole study small: minutes on two cores."""
    return StudyConfig(
        base=EMBEDDED_MODEL,
        d_model=576,
        organisms={"lora": "year-trigger"},
        layers=(14,),
        pooled=PooledConfig(
            texts=Texts(split="train", seed=1, n_trigger=24, n_benign=48, n_other=48),
            expansions={"crosscoder 4x": 4, "Diff-SAE 4x": 4},
            n_passes=100,
        ),
        tokens=TokensConfig(
            texts=Texts(split="train", n_trigger=40, n_benign=40, n_other=20), n_steps=120
        ),
        scored=(
            Texts(split="select", n_trigger=12, n_benign=24, n_other=24),
            Texts(split="test", n_trigger=12, n_benign=24, n_other=24),
        ),
        causes=CausesConfig(
            select=Texts(split="select", n_trigger=8, n_benign=0, n_other=0),
            test=Texts(split="test", n_trigger=6, n_benign=2, n_other=0),
            counts=(32,),
            n_rounds=2,
            n_likelihood=2,
        ),
        n_resamples=100,
        deviations=(
            "sizes are cut to minutes: one regime, one layer, 120 texts, dictionaries of 4x",
        ),
    )


FULL_RANK_135M = OrganismConfig(lora_rank=None, learning_rate=1e-4)


def _common() -> dict[str, Any]:
    """What both paper presets share: the published sizes and protocol, and this package's own."""
    return {
        "pooled": PooledConfig(
            texts=Texts(
                split="train", seed=1, n_trigger=500, n_benign=1000, n_other=1000, share_scenes=True
            ),
            expansions=EXPANSIONS,
        ),
        "tokens": TokensConfig(texts=Texts(split="train", n_trigger=80, n_benign=80, n_other=40)),
        "scored": (
            Texts(split="select", n_trigger=24, n_benign=48, n_other=48),
            Texts(split="test", n_trigger=24, n_benign=48, n_other=48),
        ),
        "causes": CausesConfig(
            select=Texts(split="select", n_trigger=12, n_benign=0, n_other=0),
            test=Texts(split="test", n_trigger=20, n_benign=10, n_other=0),
            counts=(32,),
        ),
    }


PRESETS: dict[str, Callable[[], StudyConfig]] = {
    "paper": paper,
    "paper-135m": paper_135m,
    "quick": quick,
}
"""By name, what `diffsae-lens reproduce --preset` runs."""
