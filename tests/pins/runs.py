"""The rows of a whole demo and a whole study, each of a tiny model."""

from pathlib import Path
from typing import Any

from diffsae_lens.experiments.demo import DemoConfig, run_demo
from diffsae_lens.experiments.reproduce import reproduce
from diffsae_lens.experiments.study import (
    CausesConfig,
    PooledConfig,
    StudyConfig,
    Texts,
    TokensConfig,
)

from diffsae_lens.organisms._finetune import OrganismConfig
from tests.conftest import D_MODEL, byte_tokenizer, plant, tiny_llama, write_tiny_model
from tests.pins.values import plain, rows


def demo(folder: Path) -> dict[str, Any]:
    """Every table of a tiny demo."""
    base, tokenizer = _base(), byte_tokenizer(folder / "tokenizer")
    config = DemoConfig(
        base=str(write_tiny_model(folder / "base", base, tokenizer)),
        finetuned=str(write_tiny_model(folder / "finetuned", plant(base), tokenizer)),
        layers=(1,), n_training_samples=10, k=4, n_steps=8, n_score_prompts=20,
        n_generation_prompts=2, n_likelihood_prompts=2, feature_counts=(2, 4), n_rounds=2, n_scenes=1,
    )  # fmt: skip
    results = run_demo(config, folder / "demo")
    return {
        "scores": rows(results["scores"], "name"),
        "causes": rows(results["causes"], "name", "dictionary", "n_features", "group"),
        "features": rows(results["features"], "dictionary", "feature"),
        "harm": plain(results["harm"]),
        "sayings": plain(results["sayings"]),
        "years": plain(results["years"]),
        "dictionaries": plain(results["dictionaries"]),
    }


def study(folder: Path) -> dict[str, Any]:
    """Every table of a tiny study in both regimes."""
    tokenizer = byte_tokenizer(folder / "tokenizer")
    training = {"n_trigger": 4, "n_benign": 4, "n_other": 2, "n_steps": 2, "batch_size": 2}
    config = StudyConfig(
        base=str(write_tiny_model(folder / "base", _base(), tokenizer)),
        d_model=D_MODEL,
        organisms={
            "lora": OrganismConfig(lora_rank=2, **training),
            "full": OrganismConfig(lora_rank=None, learning_rate=1e-2, **training),
        },
        layers=(1,),
        pooled=PooledConfig(
            texts=_texts("test", 6, 12), expansions={"crosscoder 2x": 2, "Diff-SAE 2x": 2}, k=4,
            batch_size=8, n_passes=3, learning_rate=1e-2,
        ),
        tokens=TokensConfig(texts=_texts("train", 4, 3), k=4, n_steps=8, batch_size=64),
        scored=(_texts("select", 4, 8), _texts("test", 4, 8)),
        causes=CausesConfig(
            select=_texts("select", 2, 0), test=_texts("test", 1, 1), counts=(2,), n_rounds=1,
            n_likelihood=1,
        ),
        n_resamples=20,
        n_card_prompts=2,
        deviations=("a tiny random model",),
    )  # fmt: skip
    results = reproduce(config, folder / "study")
    at = ("regime", "layer")
    return {
        "organisms": rows(results["organisms"], "regime", "group"),
        "variance": rows(results["variance"], *at),
        "paper": rows(results["paper"], *at, "name"),
        "strict": rows(results["strict"], *at, "name", "hook_name"),
        "causes": rows(results["causes"], *at, "name", "group"),
        "contrasts": plain(results["contrasts"]),
    }


def _base() -> Any:
    return tiny_llama(max_position_embeddings=1024)


def _texts(split: str, n_trigger: int, n_others: int) -> Texts:
    return Texts(split=split, n_trigger=n_trigger, n_benign=n_others, n_other=n_others)
