"""Every architecture on the difference, every crosscoder on both models: train, save, load."""

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig

from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    DeltaCrosscoderTrainingSAEConfig,
    JumpReLUCrosscoderTrainingSAEConfig,
    L1CrosscoderTrainingSAEConfig,
    PaperCrosscoderTrainingSAEConfig,
    PaperDiffSAETrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
    SparseTopKTrainingSAEConfig,
)
from diffsae_lens.training._normalization import Normalization
from diffsae_lens.training._runner import (
    CrosscoderRunnerConfig,
    DiffSAERunnerConfig,
    TrainingRun,
    train_dictionaries,
)
from tests.conftest import D_MODEL, HOOKS

DIFF = {
    "standard": (StandardTrainingSAEConfig, {"l1_coefficient": 0.1}),
    "gated": (GatedTrainingSAEConfig, {"l1_coefficient": 0.1}),
    "topk": (TopKTrainingSAEConfig, {"k": 4}),
    "batchtopk": (BatchTopKTrainingSAEConfig, {"k": 4}),
    "matryoshka": (
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 4, "matryoshka_widths": [16, 48]},
    ),
    "jumprelu": (JumpReLUTrainingSAEConfig, {"l0_coefficient": 0.1}),
    "sparse_topk": (SparseTopKTrainingSAEConfig, {"k": 4}),
    "sparse_batchtopk": (SparseBatchTopKTrainingSAEConfig, {"k": 4}),
    "paper": (PaperDiffSAETrainingSAEConfig, {}),
}
CROSSCODERS = {
    "l1": (L1CrosscoderTrainingSAEConfig, {"l1_coefficient": 0.1}),
    "jumprelu": (JumpReLUCrosscoderTrainingSAEConfig, {"l0_coefficient": 0.1}),
    "shared": (
        JumpReLUCrosscoderTrainingSAEConfig,
        {"l0_coefficient": 0.1, "n_shared_features": 12},
    ),
    "batchtopk": (BatchTopKCrosscoderTrainingSAEConfig, {"k": 4}),
    "dedicated": (
        BatchTopKCrosscoderTrainingSAEConfig,
        {"k": 4, "n_base_only": 4, "n_finetuned_only": 4},
    ),
    "delta": (
        DeltaCrosscoderTrainingSAEConfig,
        {"k": 3, "k_delta": 2, "n_delta_features": 12},
    ),
    "paper": (PaperCrosscoderTrainingSAEConfig, {"k": 4}),
}


def train(config, activations, path, *, n_steps):
    trainer = SAETrainerConfig(
        total_training_samples=64 * n_steps,
        train_batch_size_samples=64,
        lr=6e-3,
        lr_end=6e-4,
        dead_feature_window=12,
    )
    run = TrainingRun(trainer=trainer)
    train_dictionaries({"d": config}, activations, path, run=run)
    return SAE.load_from_disk(path / "d")


def unexplained(sae, x):
    return (((x - sae(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()).item()


def check(config, activations, tmp_path):
    short = train(config, activations, tmp_path / "short", n_steps=1)
    trained = train(config, activations, tmp_path / "long", n_steps=40)
    x = activations.rows(58, 64)[config.hook.name]
    assert unexplained(trained, x) < 0.8 * unexplained(short, x)
    assert unexplained(trained, x) < 1
    return trained, x


@pytest.mark.parametrize("architecture", DIFF)
def test_every_architecture_trains_on_the_difference(architecture, activations, tmp_path):
    config_class, options = DIFF[architecture]
    sae_config = config_class(d_in=D_MODEL, d_sae=48, **options)
    normalization = None if architecture == "paper" else Normalization(center=False)
    config = DiffSAERunnerConfig(hook_name=HOOKS[1], sae=sae_config, normalization=normalization)
    trained, _ = check(config, activations, tmp_path)
    stored = trained.cfg.metadata.diffsae_lens
    assert stored["sign"] == "finetuned - base"
    if normalization:
        assert 0 <= stored["normalization"]["offset_share"][0] < 1


@pytest.mark.parametrize("kind", CROSSCODERS)
def test_every_crosscoder_trains_on_both_models(kind, activations, tmp_path):
    config_class, options = CROSSCODERS[kind]
    sae_config = config_class(d_in=2 * D_MODEL, d_sae=48, **options)
    scale = "common" if kind == "delta" else "by model"
    normalization = None if kind == "paper" else Normalization(scale=scale)
    config = CrosscoderRunnerConfig(hook_name=HOOKS[1], sae=sae_config, normalization=normalization)
    trained, x = check(config, activations, tmp_path)
    if "k" in options and kind != "paper":
        k = options["k"] + options.get("k_delta", 0)
        assert (trained.encode(x) > 0).float().sum(-1).mean().item() == pytest.approx(k, rel=0.1)
    if kind == "dedicated":
        assert not trained.W_dec_finetuned[:4].any()
        assert not trained.W_dec_base[4:8].any()
    if kind == "shared":  # equal in the space it was trained in
        scale = trained.cfg.metadata.diffsae_lens["normalization"]["scale"]
        base, finetuned = trained.W_dec_base / scale[0], trained.W_dec_finetuned / scale[1]
        torch.testing.assert_close(base[:12], finetuned[:12])
        assert (base[12:] - finetuned[12:]).norm() > 0.01


def test_normalisations_that_would_fail_or_mislead_are_refused_before_training():
    paper = PaperCrosscoderTrainingSAEConfig(d_in=2 * D_MODEL, d_sae=48, k=4)
    with pytest.raises(ValueError, match="takes raw activations"):
        CrosscoderRunnerConfig(hook_name=HOOKS[1], sae=paper, normalization=Normalization())
    delta = DeltaCrosscoderTrainingSAEConfig(
        d_in=2 * D_MODEL, d_sae=48, k=3, k_delta=2, n_delta_features=12
    )
    with pytest.raises(ValueError, match="scale='common'"):
        CrosscoderRunnerConfig(hook_name=HOOKS[1], sae=delta, normalization=Normalization())


def test_one_normalisation_at_a_time():
    sae = BatchTopKTrainingSAEConfig(
        d_in=D_MODEL, d_sae=48, k=4, normalize_activations="expected_average_only_in"
    )
    with pytest.raises(ValueError, match="replaces SAELens's own"):
        DiffSAERunnerConfig(hook_name=HOOKS[1], sae=sae, normalization=Normalization())


def all_configs():
    found = {}
    for name, (config_class, options) in DIFF.items():
        sae = config_class(d_in=D_MODEL, d_sae=48, **options)
        normalization = None if name == "paper" else Normalization(center=False)
        found[f"diff-{name}"] = DiffSAERunnerConfig(
            hook_name=HOOKS[1], sae=sae, normalization=normalization
        )
    for name, (config_class, options) in CROSSCODERS.items():
        sae = config_class(d_in=2 * D_MODEL, d_sae=48, **options)
        scale = "common" if name == "delta" else "by model"
        normalization = None if name == "paper" else Normalization(scale=scale)
        found[f"both-{name}"] = CrosscoderRunnerConfig(
            hook_name=HOOKS[1], sae=sae, normalization=normalization
        )
    annealed = BatchTopKCrosscoderTrainingSAEConfig(
        d_in=2 * D_MODEL, d_sae=48, k=4, k_initial=12, k_annealing_steps=11
    )
    found["both-annealed"] = CrosscoderRunnerConfig(hook_name=HOOKS[1], sae=annealed)
    return found


def test_every_architecture_goes_on_from_a_checkpoint_to_the_same_weights(
    activations, tmp_path, monkeypatch
):
    def run(path):
        trainer = SAETrainerConfig(
            total_training_samples=64 * 12,
            train_batch_size_samples=64,
            lr=3e-3,
            lr_end=3e-4,
            lr_warm_up_steps=3,
            lr_decay_steps=4,
            dead_feature_window=3,
            feature_sampling_window=5,
            n_checkpoints=2,
            checkpoint_path=str(path / "checkpoints"),
        )
        return TrainingRun(trainer=trainer)

    whole = train_dictionaries(
        all_configs(), activations, tmp_path / "a/d", run=run(tmp_path / "a")
    )
    batches = type(activations).batches

    def until_the_power_fails(self, *args, **kwargs):
        for i, batch in enumerate(batches(self, *args, **kwargs)):
            if i == 9:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(type(activations), "batches", until_the_power_fails)
        with pytest.raises(KeyboardInterrupt):
            train_dictionaries(
                all_configs(), activations, tmp_path / "b/d", run=run(tmp_path / "b")
            )
    resumed = train_dictionaries(
        all_configs(), activations, tmp_path / "b/d", run=run(tmp_path / "b")
    )
    for name, sae in whole.items():
        for weight, expected in sae.state_dict().items():
            assert torch.equal(resumed[name].state_dict()[weight], expected), (name, weight)
        assert resumed[name].cfg.metadata.l0 == sae.cfg.metadata.l0, name
