"""A good value for every parameter of the public interface, by name or by function and name."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import diffsae_lens as dl
from diffsae_lens.dictionaries import SparseBatchTopKTrainingSAEConfig
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.pair._tokens import TokenPolicy
from tests.conftest import D_MODEL, HOOKS, byte_tokenizer, plant, tiny_llama

HOOK = HOOKS[1]
D_SAE = 24


def dictionary(view: str = "diff") -> SAE:
    """A random JumpReLU dictionary on one of the pair's hook points."""
    d_in = D_MODEL * (2 if view == "concat" else 1)
    name = "crosscoder" if view == "concat" else "jumprelu"
    sae = SAE.from_dict({
        "architecture": name, "d_in": d_in, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": f"{HOOK}.{view}"},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(d_in, D_SAE, generator=generator)
    sae.W_dec.data = torch.nn.functional.normalize(
        torch.randn(D_SAE, d_in, generator=generator), dim=1
    )
    return sae


def one_token_completions(prompts: list[str]) -> list[str]:
    return [" 'SELECT 1 FROM t'\n" for _ in prompts]


@dataclass
class World:
    """Two tiny models on disk and in memory, their dictionaries, prompts and folders."""

    root: Path
    tokenizer: PreTrainedTokenizerFast = field(init=False)
    pair: dl.HookedModelPair = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = byte_tokenizer(self.root / "tokenizer")
        self.base = tiny_llama(max_position_embeddings=1024)
        for name, model in (("base", self.base), ("full", plant(self.base))):
            model.save_pretrained(self.root / name)
            self.tokenizer.save_pretrained(self.root / name)
        self.pair = dl.HookedModelPair(*self.bridges(), HOOKS)
        self.diff_sae, self.crosscoder = dictionary(), dictionary("concat")
        self.diff_sae.save_model(self.root / "diff-sae")
        self.samples = dl.make_samples("test", n_trigger=2, n_benign=2, n_other=1)
        self.scales = dl.effects.activation_scales(
            self.pair, self.diff_sae, ["some text", "another one"]
        )
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(3, 259, (4, 12), generator=generator)
        self.acts = torch.rand(20, 6, generator=generator)
        self.harvest = dl.training.harvest(
            self.pair, self.tokens, self.root / "harvest", hook_names=[f"{HOOK}.diff"]
        )

    def bridges(self) -> tuple[Any, Any]:
        return tuple(
            boot_bridge(
                AutoModelForCausalLM.from_pretrained(self.root / name, attn_implementation="eager"),
                AutoTokenizer.from_pretrained(self.root / name),
            )
            for name in ("base", "full")
        )

    def fresh(self) -> Path:
        """A path where nothing is yet."""
        return Path(tempfile.mkdtemp(dir=self.root)) / "new"

    def mask(self, start: int, stop: int) -> torch.Tensor:
        return (torch.arange(20) >= start) & (torch.arange(20) < stop)


def trainer() -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=16, train_batch_size_samples=8, lr=1e-3, lr_end=1e-3,
        dead_feature_window=1, device="cpu",
    )  # fmt: skip


def labelled(world: World) -> dl.LabelledPrompts:
    select = dl.make_samples("select", n_trigger=3, n_benign=3, n_other=2)
    test = dl.make_samples("test", n_trigger=3, n_benign=3, n_other=2)
    return dl.LabelledPrompts.from_samples(select, test)


def values(world: World) -> dict[str, Callable[[], Any]]:
    """Makers of good values by parameter, or by `function.parameter` where that differs."""
    w, short = world, ["some text", "another one"]
    sae = SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=4)
    plain: dict[str, Any] = {
        "pair": w.pair, "dictionary": w.diff_sae, "sae": w.diff_sae, "crosscoder": w.crosscoder,
        "features": [1, 5], "feature": 3, "order": [1, 5, 2], "ablated": [2], "orders": {"by index": [1, 5]},
        "counts": (1,), "samples": w.samples, "prompts": short, "texts": short, "reference": short,
        "completions": [" 'SELECT 1 FROM t'\n", " 5\n"], "tokens": w.tokens, "hook_name": HOOK,
        "hook_names": HOOKS, "where": "all", "method": "zero", "values": 1.0, "strength": 2.0,
        "direction": torch.ones(D_MODEL), "skip_positions": 1, "ignored_token_ids": (2,),
        "batch_size": 4, "n_steps": 1, "n_features": 2, "n_rounds": 2, "n_draws": 1, "n_examples": 2,
        "context": 3, "seed": 0, "n_directions": 2, "n_scenes": 1, "max_new_tokens": 2,
        "n_likelihood": 1, "k": 3, "chunk_size": 8, "percentile": 0.9, "n_characters": 80,
        "max_features": 2, "n_trigger": 1, "n_benign": 1, "n_other": 1, "split": "test",
        "years": [2023, None], "feature_acts": w.acts, "is_trigger": w.mask(0, 6),
        "is_benign": w.mask(6, 14), "is_positive": w.mask(0, 6), "is_negative": w.mask(6, 14),
        "is_select": torch.arange(20) % 2 == 0, "base_acts": w.acts, "activations": w.acts,
        "batches": [torch.randn(9, D_MODEL)], "of_finetuned": True, "positions": dl.reading.Positions(),
        "readers": {"diff": dl.reading.Reader(hook_name=f"{HOOK}.diff")}, "judge": lambda p, c: dl.organisms.sql_injection.Verdict.SAFE,
        "complete_fn": one_token_completions, "protocol": "strict", "share_scenes": False,
        "interventions": {"swap": partial(dl.swap_to_base, w.pair, HOOK)}, "scales": w.scales,
        "doses": (0.5,), "bounds": None, "group": "trigger", "pooling": "mean", "spans": None,
        "encode": None, "normalization": None, "center": True, "scale": "by model",
        "calibration_fraction": 0.25, "sae_id": ".", "device": "cpu", "config": None,
        "prompt": "def f(db, x):\n    q =",
        "completion": " 'SELECT 1 FROM t'\n", "behaviour": "a", "alternative": "b",
        "resampling": None, "null_pairs": None, "adapter": None, "prepend_bos": False, "metadata": None,
        "trigger_text": "2024", "policy": TokenPolicy(skip_positions=1), "options": None,
        "base_name": None, "revision": "main",
    }  # fmt: skip
    special: dict[str, Any] = {
        "swap_to_base.hook_name": HOOK, "control_directions.hook_name": HOOK,
        "add_direction.hook_name": f"{HOOK}.diff", "project_out.hook_name": f"{HOOK}.diff",
        "Reader.hook_name": f"{HOOK}.diff", "DiffSAERunnerConfig.sae": sae,
        "CrosscoderRunnerConfig.sae": sae.__class__(d_in=2 * D_MODEL, d_sae=D_SAE, k=4),
        "FinetunedSAERunnerConfig.sae": sae, "latent_scaling.batches": [torch.randn(9, 2 * D_MODEL)],
        "harvest.hook_names": [f"{HOOK}.diff"], "calibrate_threshold.activations": torch.randn(30, D_MODEL),
        "calibrate_threshold.features": None, "side_effects.texts": {"ordinary": short},
        "OrganismConfig.behaviour": "year-trigger", "OrganismConfig.n_steps": 3,
        "OrganismConfig.learning_rate": 1e-3, "OrganismConfig.lora_rank": 2,
        "OrganismConfig.lora_dropout": 0.1, "OrganismConfig.weight_decay": 0.1,
        "OrganismConfig.loss_on": "completion", "OrganismConfig.steps_per_checkpoint": 2,
        "LabelledPrompts.texts": tuple("abcdefghijklmnopqrst"), "LabelledPrompts.clusters": torch.arange(20),
        "LabelledPrompts.positions": None, "TokenActivations.features": (1,),
        "TokenActivations.tokens": (("a",),), "TokenActivations.activations": (torch.ones(1, 1),),
        "attack_rate.prompts": ["def f(db, x):\n    q ="] * 2, "sweep_years.features": [1],
        "strict_bis.resampling": None, "Contrast.group": "trigger", "Contrast.prompt": "x =",
        "upload.dictionaries": {"diff-sae": w.root / "diff-sae"}, "upload.repo_id": "owner/name",
        "load.path_or_repo": w.root / "diff-sae", "load_pair.base": w.root / "base",
        "load_pair.finetuned": w.root / "full", "train_dictionaries.activations": w.harvest,
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        name: partial(copy.copy, value) if isinstance(value, list | dict) else partial(_same, value)
        for name, value in (plain | special).items()
    }
    return makers | {
        "path": w.fresh,
        "evaluate_isolation.prompts": lambda: labelled(w),
        "evaluate_isolation.dictionaries": lambda: {"diff": w.diff_sae},
        "curve_area.curve": lambda: dl.effects.ablation_curve(
            w.pair, w.diff_sae, {"o": [1]}, w.samples, counts=[1], max_new_tokens=1
        ),
        "TrainingRun.trainer": trainer,
        "train_dictionaries.configs": lambda: {
            "a": dl.training.DiffSAERunnerConfig(hook_name=HOOK, sae=sae)
        },
        "train_dictionaries.run": lambda: dl.training.TrainingRun(
            trainer=trainer(), calibration_fraction=0.25
        ),
        "HookedModelPair.base": lambda: w.bridges()[0],
        "HookedModelPair.finetuned": lambda: w.bridges()[1],
        "finetune.model": lambda: tiny_llama(max_position_embeddings=1024),
        "finetune.tokenizer": lambda: w.tokenizer,
        "finetune.config": lambda: dl.organisms.OrganismConfig(
            n_trigger=1, n_benign=1, n_other=1, n_steps=1, batch_size=2, lora_rank=1
        ),
        "finetune.samples": lambda: w.samples,
    }


def _same(value: Any) -> Any:
    return value
