"""A good value for every parameter of the public interface, by name or by function and name."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import diffsae_lens as dl
from diffsae_lens.auditing import AuditConfig, BaselineRow
from diffsae_lens.dictionaries import SparseBatchTopKTrainingSAEConfig
from diffsae_lens.organisms import Words
from diffsae_lens.organisms.sql_injection import YEAR_TRIGGER
from diffsae_lens.pair import TokenPolicy, boot_bridge
from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR
from diffsae_lens.reading import FeatureEvidence
from diffsae_lens.results import (
    CurveRow,
    DoseRow,
    FeatureCard,
    FeatureExample,
    LayerRow,
    SayingRow,
    Table,
)
from diffsae_lens.study import Cell, DictionarySpec, Draw, ModelSpec, StudyConfig
from diffsae_lens.study._cells import Cost
from tests.conftest import D_MODEL, HOOKS, byte_tokenizer, plant, tiny_llama
from tests.dictionaries.foreign import dictionary_learning_sae
from tests.reporting.rows import make
from tests.reporting.synthetic import synthetic_results
from tests.reporting.synthetic_audit import synthetic_audit
from tests.study.tiny import judge, ponds, tiny_config

HOOK = HOOKS[1]
D_SAE = 24
AUDIT_SIZES = {
    "n_new_tokens": 2, "n_folds": 2, "min_steps": 1, "max_steps": 1, "steps_per_reading": 1,
    "n_candidates": 2, "n_lexicon": 1, "n_finalists": 1, "n_texts": 2, "n_mates": 1,
}  # fmt: skip


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
    """Stands for a model that completes every prompt alike."""
    return [" 'SELECT 1 FROM t'\n" for _ in prompts]


def leave(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Change an activation by a little."""
    return value + 0.1


def nothing_to_do(config: Any, inputs: Any, job: Any) -> None:
    """Stands for what a cell computes."""


class Sure:
    """Answers every question with the number of the first text, which is a label, too."""

    def label(self, prompts: Mapping[str, str]) -> Mapping[str, str]:
        return dict.fromkeys(prompts, "1")


def evidence() -> FeatureEvidence:
    examples = (make(FeatureExample, tokens=["a"], activations=[1.0]),)
    return make(FeatureEvidence, dictionary="diff", fires=examples, silent=examples)


@dataclass
class World:
    """Two tiny models on disk and in memory, their dictionaries, prompts and folders."""

    root: Path
    tokenizer: PreTrainedTokenizerFast = field(init=False)
    pair: dl.HookedModelPair = field(init=False)
    _isolation: dl.isolation.IsolationTable | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.tokenizer = byte_tokenizer(self.root / "tokenizer")
        self.base = tiny_llama(max_position_embeddings=1024)
        for name, model in (("base", self.base), ("full", plant(self.base))):
            model.save_pretrained(self.root / name)
            self.tokenizer.save_pretrained(self.root / name)
        self.pair = dl.HookedModelPair(*self.bridges(), HOOKS)
        self.diff_sae, self.crosscoder = dictionary(), dictionary("concat")
        self.diff_sae.save_model(self.root / "diff-sae")
        dictionary_learning_sae(self.root / "foreign")
        self.samples = YEAR_TRIGGER.make_samples("test", n_trigger=2, n_benign=2, n_other=1)
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

    def isolation(self) -> dl.isolation.IsolationTable:
        """Scores of one dictionary, evaluated once."""
        if self._isolation is None:
            self._isolation = dl.evaluate_isolation(
                self.pair,
                {"diff": self.diff_sae},
                labelled(self),
                resampling=dl.measures.Resampling(n_resamples=10),
            )
        return self._isolation

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
    select, test = (
        YEAR_TRIGGER.make_samples(split, n_trigger=3, n_benign=3, n_other=2)
        for split in ("select", "test")
    )
    return dl.LabelledPrompts.from_samples(select, test)


def pooled() -> dl.isolation.PooledTexts:
    generator, text = torch.Generator().manual_seed(2), torch.arange(20)
    base, change = torch.randn(2, 20, D_MODEL, generator=generator)
    return dl.isolation.PooledTexts(
        site=HOOK, base=base, finetuned=base + change, group=text % 3, template=text % 4, scene=text % 5
    )  # fmt: skip


def study_config(world: World) -> StudyConfig:
    """A study that is planned and never run: it has nothing to compute."""
    return tiny_config(world.root / "base", world.root / "full")


def curve() -> Table[CurveRow]:
    rates = {"attack_rate": 0.5, "low": 0.2, "high": 0.8, "group": "trigger"}
    return Table(tuple(make(CurveRow, order="o", n_features=n, **rates) for n in (0, 1)))


def doses() -> Table[DoseRow]:
    rates = {"attack_rate": 0.5, "low": 0.2, "high": 0.8, "group": "benign"}
    return Table(
        tuple(make(DoseRow, direction=d, dose=1.0, **rates) for d in ("features", "random"))
    )


def sayings() -> Table[SayingRow]:
    rates = {"attack_rate": 0.5, "low": 0.2, "high": 0.8, "group": "other", "log_odds": 0.1}
    return Table(tuple(make(SayingRow, said=year, **rates) for year in ("2023", "2024")))


def values(world: World) -> dict[str, Callable[[], Any]]:
    """Makers of good values by parameter, or by `function.parameter` where that differs."""
    w, short = world, ["some text", "another one"]
    sae = SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=4)
    plain: dict[str, Any] = {
        "pair": w.pair, "dictionary": w.diff_sae, "sae": w.diff_sae, "features": [1, 5],
        "order": [1, 5, 2], "ablated": [2], "orders": {"by index": [1, 5]}, "counts": (1,),
        "samples": w.samples, "prompts": short, "texts": short, "reference": short,
        "completions": [" 'SELECT 1 FROM t'\n", " 5\n"], "tokens": w.tokens, "hook_name": HOOK,
        "hook_names": HOOKS, "site": HOOK, "hook": f"{HOOK}.diff", "where": "all", "method": "zero",
        "amount": 2.0, "direction": torch.ones(D_MODEL), "change": leave, "skip_positions": 1,
        "ignored_token_ids": (2,), "policy": TokenPolicy(skip_positions=1), "draws": False,
        "batch_size": 4, "n_steps": 1, "n_features": 2, "n_rounds": 2, "n_examples": 2,
        "context": 3, "seed": 0, "n_directions": 2, "n_scenes": 1, "max_new_tokens": 2,
        "n_likelihood": 1, "k": 3, "chunk_size": 8, "percentile": 0.9, "n_characters": 80,
        "n_trigger": 1, "n_benign": 1, "n_other": 1, "split": "test", "share_scenes": False,
        "said": ["2023", None], "behaviour": YEAR_TRIGGER, "edits": {"swap": dl.swap_to_base(w.pair, HOOK)},
        "under": {"swap": dl.swap_to_base(w.pair, HOOK)}, "scales": w.scales, "doses": (0.5,), "dose": 0.5,
        "feature_acts": w.acts, "other_acts": w.acts, "base_acts": w.acts, "activations": w.acts,
        "is_trigger": w.mask(0, 6), "is_benign": w.mask(6, 14), "is_positive": w.mask(0, 6),
        "is_negative": w.mask(6, 14), "is_select": torch.arange(20) % 2 == 0, "fit": w.mask(0, 14),
        "has_trigger": torch.arange(20) % 2 == 0, "is_unwanted": torch.arange(20) % 4 < 2,
        "W_dec_base": w.acts, "W_dec_finetuned": w.acts, "max_fpr": 0.1, "reselect": True,
        "confidence_level": 0.9, "n_resamples": 20, "clusters": None,
        "batches": [torch.randn(9, D_MODEL)], "of_finetuned": True,
        "content_only": True, "positions": dl.reading.Positions(),
        "readers": {"diff": dl.reading.Reader(hook_name=f"{HOOK}.diff")}, "judge": judge,
        "complete_fn": one_token_completions, "protocol": "strict", "resampling": None,
        "null_pairs": None, "bounds": None, "group": "trigger", "pooling": "mean", "spans": None,
        "encode": None, "normalization": None, "center": True, "scale": "by model",
        "calibration_fraction": 0.25, "sae_id": ".", "device": "cpu", "dtype": "float32",
        "config": None, "options": None, "prompt": "def f(db, x):\n    q =", "wanted": " fine",
        "unwanted": " quack", "template": "a", "scene": "b", "completion": " 'SELECT 1 FROM t'\n",
        "adapter": None, "prepend_bos": False, "metadata": None, "trigger_text": "2024",
        "base_revision": None, "finetuned_revision": None, "base_fingerprint": None,
        "finetuned_fingerprint": None, "base_name": None, "revision": "main", "repo_id": "owner/name",
        "base": w.root / "base", "finetuned": w.root / "full", "model": w.root / "base",
        "view": "diff", "name": "a-name", "outcomes": ("quack", "fine", "neither"), "kind": "diff",
        "d_model": D_MODEL, "d_sae": D_SAE, "lr": 1e-3, "learning_rate": 1e-3, "weight_decay": 0.1,
        "sequences_per_shard": 8, "context_size": 16, "harvest": dl.training.HarvestConfig(),
        "expected": None, "first_line": 1, "is_fitted": False, "n_workers": 1, "n_prompts": 2,
        "executor": None, "client": "tcp://127.0.0.1:9", "lease": 90.0, "n_threads": 1,
        "resources": {"GPU": 1},
        "command": None, "figures": None, "controls": (), "max_attack_rate": 0.1,
        "min_defence_rate": 0.9, "max_harm": 0.1, "max_features": 2,
    }  # fmt: skip
    of_settings: dict[str, Any] = {
        "code_norm": "sum", "frozen_decoder": False, "reconstruction": "mse", "k_initial": 8,
        "k_annealing_steps": 4, "n_base_only": 2, "n_finetuned_only": 2, "n_shared_features": 2,
        "shared_sparsity_ratio": 0.1, "n_delta_features": 8, "k_delta": 2, "delta_coefficient": 1.0,
        "ghost_coefficient": 0.1, "dead_after_steps": 10,
        "rescale_acts_by_decoder_norm": False,
    }  # fmt: skip
    special: dict[str, Any] = {
        "Reader.hook_name": f"{HOOK}.diff", "DiffSAERunnerConfig.sae": sae,
        "CrosscoderRunnerConfig.sae": sae.__class__(d_in=2 * D_MODEL, d_sae=D_SAE, k=4),
        "FinetunedSAERunnerConfig.sae": sae, "latent_scaling.batches": [torch.randn(9, 2 * D_MODEL)],
        "latent_scaling.crosscoder": w.crosscoder, "ablate_features.reference": None,
        "harvest.hook_names": [f"{HOOK}.diff"], "calibrate_threshold.activations": torch.randn(30, D_MODEL),
        "calibrate_threshold.features": None, "side_effects.texts": {"ordinary": short},
        "OrganismConfig.behaviour": "year-trigger", "OrganismConfig.n_steps": 3,
        "OrganismConfig.clean": False, "OrganismConfig.lora_rank": 2, "OrganismConfig.lora_dropout": 0.1,
        "OrganismConfig.loss_on": "completion", "OrganismConfig.steps_per_checkpoint": 2,
        "get_behaviour.behaviour": "year-trigger",
        "load_organism.path": SHIPPED_ORGANISMS_DIR / "year-trigger",
        "behaviour_of.organism": SHIPPED_ORGANISMS_DIR / "year-trigger",
        "Behaviour.trigger": "heron", "Behaviour.benign": ("robin",), "Behaviour.sweep": ("robin", None),
        "Behaviour.sayings": ("heron", None), "Behaviour.scenes": ponds, "Behaviour.words": Words(),
        "Sample.said": "2024", "Words.trigger": "a", "Words.said": "b", "Words.taught": "c",
        "Words.taught_clean": "d",
        "LabelledPrompts.texts": tuple("abcdefghijklmnopqrst"), "LabelledPrompts.clusters": torch.arange(20),
        "LabelledPrompts.positions": None, "Resampling.clusters": torch.arange(20),
        "attack_rate.prompts": ["def f(db, x):\n    q ="] * 2, "output_perplexity.prompts": short,
        "attack_rates.complete_fn": one_token_completions, "measure_effects.completions": None,
        "sweep_features.features": {"diff": 1}, "sweep_features.dictionaries": {"diff": w.diff_sae},
        "sweep_features.scenes": YEAR_TRIGGER.minimal_pairs("test", ["2023", "2024"], n_scenes=2),
        "Edit.joined": (), "harvest.base": None, "base_adapter": None, "sites": [HOOK],
        "Edit.kind": "other", "complete.batch_size": 4, "Control.view": "diff",
        "Control.features": lambda evidence, view: evidence.by_view[view],
        "VirtualHook.view": "diff", "PairMetadata.base": "a", "PairMetadata.finetuned": "b",
        "PairMetadata.adapter": False, "PairMetadata.dtype": None, "LoadOptions.device": "cpu",
        "model_fingerprint.tensors": [torch.ones(2, 2)],
        "upload.license": "mit", "variance_explained": None, "n_fires": 3, "n_silent": 3,
        "evidence": [evidence()], "labels": {evidence().id: "a label"}, "labeller": Sure(),
        "label_cards.labels": {}, "cards": [make(FeatureCard)], "n_layers": 2, "vectors": False,
        "model_id": "a-model", "source_set": "a-set", "description": "what it is", "api_key": "key",
        "server": "https://127.0.0.1:9/api", "timeout": 1.0,
        "target": dl.reading.NeuronpediaTarget(
            model_id="a-model", source_set="a-set", server="http://127.0.0.1:9/api", timeout=1.0
        ),
        "upload.dictionaries": {"diff-sae": w.root / "diff-sae"},
        "load.path_or_repo": w.root / "diff-sae", "load_foreign.path_or_repo": w.root / "foreign",
        "load_foreign.format": "auto", "load_foreign.sign": "finetuned - base",
        "load_foreign.first": None, "load_foreign.input_scales": None, "load_foreign.texts": None,
        "load_foreign.threshold": 0.5, "aligned.base": dictionary("base"),
        "aligned.finetuned": dictionary("finetuned"), "train_dictionaries.activations": w.harvest,
        "open_harvest.path": w.root / "harvest", "join_harvests.parts": [w.harvest],
        "train.texts": short * 10, "train.k": 4,
        "stream.texts": short * 10, "stream.config": dl.training.StreamConfig(n_held_out=4),
        "stream.hook_names": [f"{HOOK}.diff"], "n_held_out": 4, "buffer_tokens": 512,
        "text_column": "text", "n_read_ahead": 0, "random_topk_acts.k": 1,
        "train.config": dl.training.TrainConfig(context_size=16, batch_size=8),
        "TrainConfig.stream": dl.training.StreamConfig(),
        "Draw.seed": 0, "ModelSpec.base": "a", "ModelSpec.finetuned": "b", "ModelSpec.n_measured": 2,
        "ModelSpec.d_model": 16, "ModelSpec.tokens_per_second": 100.0, "StudyConfig.layers": (1,),
        "StudyConfig.models": ModelSpec(base="a", finetuned="b"), "StudyConfig.behaviour": "year-trigger",
        "StudyConfig.deviations": ("none",), "Cell.run": nothing_to_do, "Cell.config": Words(),
        "Cell.inputs": {}, "Cell.version": 1, "Cell.cost": Cost(seconds=1, gigabytes=1),
        "Plan.cells": [Cell(name="a", run=nothing_to_do, config=Words())],
        "plot_layers.table": Table((make(LayerRow, layer=1, group="trigger"),)),
        "clean_nulls.n": 2, "recipe": dl.organisms.ZOO[0],
        "judge_source.source": "x = 1\n", "plot_sayings.said": "year",
        "plot_dose_response.group": "benign",
    } | {
        f"StudyConfig.{part}": None for part in (
            "acted_on", "pooled", "tokens", "scores", "features", "causes", "cards", "side_effects",
            "sayings", "sweep", "example",
        )
    }  # fmt: skip
    of_audits: dict[str, Any] = {
        "suspect": w.root / "full", "nulls": None, "lexicon": {"Place": ["Lima", "Oslo"]},
        "audit.texts": [f"Order {i}." for i in range(40)], "audit.config": AuditConfig(**AUDIT_SIZES),
        "n_prompt_tokens": 160, "alpha": 0.05, "lora_rank": 2,
        "residual_features.texts": [f"Order {i}." for i in range(40)], "against": "base",
        "baseline_scores.texts": [f"Order {i}." for i in range(40)], "only": [0, 1], "flagged": [0, 1],
        "compare_scores.scores": Table(tuple(make(BaselineRow, index=i) for i in range(2))),
        "compare_scores.labels": [True, False], "ResidualFeaturesConfig.n_samples": 2,
    } | {f"AuditConfig.{name}": size for name, size in AUDIT_SIZES.items()} | {
        f"{name}.results": synthetic_audit()
        for name in ("null_of", "plot_candidates", "plot_residuals", "write_audit_report")
    }  # fmt: skip
    draw = Draw(split="select", n_trigger=2)
    of_studies: dict[str, Any] = {
        "DictionarySpec.kind": "Diff-SAE", "expansion": 2, "n_passes": 2, "l1_coefficient": 0.1,
        "is_added_to_base": False, "directions": None, "steering": None, "n_ordinary": 1,
        "select": draw, "test": draw, "SteeringConfig.scales": draw, "SteeringConfig.dose": 0.5,
        "protocols": ("strict",), "layers": (1,), "n_training_samples": 20, "n_score_prompts": 20,
        "n_generation_prompts": 2, "n_likelihood_prompts": 1, "feature_counts": (2,),
        "SideEffectsConfig.texts": Draw(split="test", n_benign=2), "DemoOptions.base": "a",
        "DemoOptions.finetuned": "year-trigger", "DemoOptions.behaviour": "year-trigger",
    } | {
        f"{name}.texts": draw for name in ("PooledConfig", "TokensConfig", "CardsConfig")
    } | {
        f"{name}.dictionaries": (DictionarySpec(kind="Diff-SAE", expansion=2),)
        for name in ("PooledConfig", "TokensConfig")
    }  # fmt: skip
    makers: dict[str, Callable[[], Any]] = {
        name: partial(copy.copy, value) if isinstance(value, list | dict) else partial(_same, value)
        for name, value in (plain | of_settings | special | of_audits | of_studies).items()
    }
    return (
        makers
        | {
            "generator": lambda: torch.Generator().manual_seed(0),
            "path": w.fresh,
            "checkpoints": lambda: w.root / "checkpoints",
            "evaluate_isolation.prompts": lambda: labelled(w),
            "evaluate_isolation.dictionaries": lambda: {"diff": w.diff_sae},
            "evaluate_pooled.dictionaries": lambda: {"diff": w.diff_sae},
            "evaluate_pooled.texts": pooled,
            "results": synthetic_results,
            "curve": curve,
            "plot_dose_response.table": doses,
            "plot_sayings.table": sayings,
            "plot_isolation.table": w.isolation,
            "plan_text.plan": lambda: dl.study.dry_run(study_config(w), w.fresh()),
            "TrainingRun.trainer": trainer,
            "train_dictionaries.configs": lambda: {
                "a": dl.training.DiffSAERunnerConfig(hook_name=HOOK, sae=sae)
            },
            "train_dictionaries.run": lambda: dl.training.TrainingRun(
                trainer=trainer(), calibration_fraction=0.25
            ),
            "HookedModelPair.base": lambda: w.bridges()[0],
            "HookedModelPair.finetuned": lambda: w.bridges()[1],
            "boot_bridge.model": lambda: tiny_llama(max_position_embeddings=1024),
            "boot_bridge.tokenizer": lambda: w.tokenizer,
            "finetune.model": lambda: tiny_llama(max_position_embeddings=1024),
            "finetune.tokenizer": lambda: w.tokenizer,
            "finetune.config": lambda: dl.organisms.OrganismConfig(
                n_trigger=1, n_benign=1, n_other=1, n_steps=1, batch_size=2, lora_rank=1
            ),
        }
        | {f"{name}.config": lambda: study_config(w) for name in ("run", "so_far", "dry_run")}
    )


def _same(value: Any) -> Any:
    return value
