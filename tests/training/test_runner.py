import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler

from diffsae_lens.saes import (
    BatchTopKCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.training.calibration import calibrate_threshold
from diffsae_lens.training.harvest import HarvestConfig, harvest
from diffsae_lens.training.normalization import Normalization
from diffsae_lens.training.runner import (
    CrosscoderRunnerConfig,
    DiffSAERunnerConfig,
    FinetunedSAERunnerConfig,
    TrainingRun,
    train_dictionaries,
)
from tests.conftest import D_MODEL, HOOKS

K = 4


@pytest.fixture
def activations(pair, tmp_path):
    tokens = torch.randint(3, 259, (64, 12), generator=torch.Generator().manual_seed(0))
    names = [f"{HOOKS[1]}.{view}" for view in ("diff", "concat", "finetuned")]
    return harvest(
        pair, tokens, tmp_path / "h", hook_names=names, config=HarvestConfig(batch_size=32)
    )


def configs():
    return {
        "diff-sae": DiffSAERunnerConfig(
            hook_name=HOOKS[1], sae=BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=48, k=K)
        ),
        "crosscoder": CrosscoderRunnerConfig(
            hook_name=HOOKS[1], sae=BatchTopKTrainingSAEConfig(d_in=2 * D_MODEL, d_sae=48, k=K)
        ),
    }


def training_run(tmp_path, n_steps=60, **kwargs):
    trainer = SAETrainerConfig(
        total_training_samples=64 * n_steps, train_batch_size_samples=64, lr=3e-3, lr_end=3e-4,
        **kwargs,
    )  # fmt: skip
    return TrainingRun(trainer=trainer)


def explained(sae, x):
    return 1 - ((x - sae(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def test_dictionaries_learn_reload_and_say_what_they_are(activations, tmp_path):
    run = training_run(tmp_path)
    trained = train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    short = train_dictionaries(
        configs(), activations, tmp_path / "short", run=training_run(tmp_path, n_steps=1)
    )
    held_out = activations.rows(58, 64)
    for name, sae in trained.items():
        x = held_out[configs()[name].virtual_hook_name]
        assert explained(sae, x) > explained(short[name], x) + 0.2
        assert abs((sae.encode(x) > 0).float().sum(-1).mean() - K) <= 0.1 * K
        again = SAE.load_from_disk(tmp_path / "d" / name)
        assert torch.equal(again(x), sae(x))
        metadata = again.cfg.metadata
        assert metadata.hook_name == configs()[name].virtual_hook_name
        assert metadata.diffsae_lens["sign"] == "finetuned - base"
        assert metadata.diffsae_lens["pair"]["base"]


def test_a_plain_sae_and_frozen_decoders_train_as_controls(activations, tmp_path):
    sizes = {"d_sae": 48, "k": K}
    frozen = {"frozen_decoder": True}
    controls = {
        "plain": FinetunedSAERunnerConfig(
            hook_name=HOOKS[1], sae=SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, **sizes)
        ),
        "frozen": DiffSAERunnerConfig(
            hook_name=HOOKS[1],
            sae=SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, **sizes, **frozen),
        ),
        "frozen crosscoder": CrosscoderRunnerConfig(
            hook_name=HOOKS[1],
            sae=BatchTopKCrosscoderTrainingSAEConfig(d_in=2 * D_MODEL, **sizes, **frozen),
        ),
    }
    after = {
        n: train_dictionaries(
            controls, activations, tmp_path / f"{n}", run=training_run(tmp_path, n_steps=n)
        )
        for n in (1, 40)
    }
    rows = activations.rows(0, 64)
    for name, config in controls.items():
        early, late = (after[n][name] for n in (1, 40))
        x = rows[config.virtual_hook_name]
        assert explained(late, x) > explained(early, x) + 0.02
        assert late.cfg.metadata.hook_name == config.virtual_hook_name
        directions = [torch.nn.functional.normalize(sae.W_dec, dim=-1) for sae in (early, late)]
        assert torch.allclose(*directions, atol=1e-5) == ("frozen" in name)


def test_finished_dictionaries_are_not_trained_again(activations, tmp_path):
    run = training_run(tmp_path, n_steps=2)
    first = train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    stamp = (tmp_path / "d/diff-sae/sae_weights.safetensors").stat().st_mtime_ns
    again = train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    assert (tmp_path / "d/diff-sae/sae_weights.safetensors").stat().st_mtime_ns == stamp
    assert torch.equal(again["diff-sae"].W_dec, first["diff-sae"].W_dec)


def test_the_same_seed_gives_the_same_dictionary(activations, tmp_path):
    run = training_run(tmp_path, n_steps=3)
    torch.manual_seed(1)
    one = train_dictionaries(configs(), activations, tmp_path / "a", run=run)
    before = torch.random.get_rng_state()
    two = train_dictionaries(configs(), activations, tmp_path / "b", run=run)
    assert torch.equal(one["crosscoder"].W_enc, two["crosscoder"].W_enc)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's generator is untouched


def sparse_configs():
    """Our own classes, normalised by model."""
    sizes = {"d_sae": 48, "k": K}
    return {
        "diff-sae": DiffSAERunnerConfig(
            hook_name=HOOKS[1],
            sae=SparseBatchTopKTrainingSAEConfig(d_in=D_MODEL, **sizes),
            normalization=Normalization(center=False),
        ),
        "crosscoder": CrosscoderRunnerConfig(
            hook_name=HOOKS[1],
            sae=BatchTopKCrosscoderTrainingSAEConfig(d_in=2 * D_MODEL, n_base_only=5, **sizes),
            normalization=Normalization(),
        ),
    }


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "by model"])
def test_an_interrupted_training_resumes_to_the_same_weights(
    activations, tmp_path, monkeypatch, normalize
):
    def configs_():
        if normalize == "by model":
            return sparse_configs()
        found = configs()
        for config in found.values():
            config.sae.normalize_activations = normalize
        return found

    kwargs = {"n_steps": 12, "n_batches_for_norm_estimate": 3}
    whole = train_dictionaries(
        configs_(), activations, tmp_path / "whole", run=training_run(tmp_path, **kwargs)
    )
    folder = str(tmp_path / "checkpoints")
    run = training_run(tmp_path, n_checkpoints=2, checkpoint_path=folder, **kwargs)
    batches = type(activations).batches

    def until_the_power_fails(self, *args, **kwargs):
        for i, batch in enumerate(batches(self, *args, **kwargs)):
            if i == 10:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(type(activations), "batches", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        train_dictionaries(configs_(), activations, tmp_path / "d", run=run)
    monkeypatch.setattr(type(activations), "batches", batches)
    resumed = train_dictionaries(configs_(), activations, tmp_path / "d", run=run)
    for name, sae in resumed.items():
        torch.testing.assert_close(sae.W_dec, whole[name].W_dec, atol=1e-5, rtol=1e-4)


def test_the_checkpoint_of_another_run_is_refused(activations, tmp_path):
    options = {"n_steps": 12, "n_checkpoints": 2, "checkpoint_path": str(tmp_path / "checkpoints")}
    run = training_run(tmp_path, **options)
    train_dictionaries(configs(), activations, tmp_path / "a", run=run)
    other = TrainingRun(trainer=run.trainer, seed=1)
    with pytest.raises(ValueError, match="another seed"):
        train_dictionaries(configs(), activations, tmp_path / "b", run=other)


def test_bad_input_is_refused_before_training(activations, tmp_path):
    run = training_run(tmp_path)
    with pytest.raises(ValueError, match="`configs` is empty"):
        train_dictionaries({}, activations, tmp_path / "d", run=run)
    other = {"x": DiffSAERunnerConfig(hook_name=HOOKS[0], sae=configs()["diff-sae"].sae)}
    with pytest.raises(ValueError, match="was not harvested"):
        train_dictionaries(other, activations, tmp_path / "d", run=run)
    wide = {"x": DiffSAERunnerConfig(hook_name=HOOKS[1], sae=configs()["crosscoder"].sae)}
    with pytest.raises(ValueError, match="d_in` is 32.*16 wide"):
        train_dictionaries(wide, activations, tmp_path / "d", run=run)
    with pytest.raises(ValueError, match="lr_end"):
        TrainingRun(trainer=SAETrainerConfig(total_training_samples=8, train_batch_size_samples=8))
    with pytest.raises(ValueError, match="calibration_fraction"):
        TrainingRun(trainer=run.trainer, calibration_fraction=1.0)


@pytest.mark.parametrize("k", [0.5, 3, 7.5])
def test_calibration_fires_k_features_on_the_tokens_it_saw(k):
    sae = SAE.from_dict(
        {"architecture": "jumprelu", "d_in": 8, "d_sae": 32, "dtype": "float32", "device": "cpu"}
    )
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(8, 32, generator=generator)
    x = torch.randn(1000, 8, generator=generator)
    sae.threshold.data.fill_(100.0)
    assert not (sae.encode(x) > 0).any()
    l0 = calibrate_threshold(sae, x, k=k, chunk_size=128)
    assert l0 == pytest.approx(k, rel=0.01)
    # The reference: the threshold from all pre-activations at once.
    largest = (x @ sae.W_enc + sae.b_enc).flatten().sort(descending=True).values
    n_kept = round(k * 1000)
    assert largest[n_kept] <= sae.threshold[0] <= largest[n_kept - 1]


def test_calibration_refuses_what_it_cannot_set():
    standard = SAE.from_dict(
        {"architecture": "standard", "d_in": 8, "d_sae": 32, "dtype": "float32", "device": "cpu"}
    )
    with pytest.raises(ValueError, match="no threshold"):
        calibrate_threshold(standard, torch.randn(4, 8), k=2)
    jumprelu = SAE.from_dict(
        {"architecture": "jumprelu", "d_in": 8, "d_sae": 32, "dtype": "float32", "device": "cpu"}
    )
    with pytest.raises(ValueError, match="no tokens"):
        calibrate_threshold(jumprelu, torch.empty(0, 8), k=2)
    with pytest.raises(ValueError, match="`k` must lie"):
        calibrate_threshold(jumprelu, torch.randn(4, 8), k=33)


# --- SAELens's own runners take a pair as it is ------------------------------------------------


def text_dataset():
    import datasets

    return datasets.Dataset.from_dict({"text": ["def f(x): return x + 1\n" * 8] * 64})


def runner_kwargs():
    return {
        "model_name": "tiny-pair", "dataset_path": "unused", "streaming": False,
        "context_size": 16, "training_tokens": 512,
        "store_batch_size_prompts": 4, "n_batches_in_buffer": 4, "prepend_bos": False,
        "device": "cpu", "logger": LoggingConfig(log_to_wandb=False), "n_checkpoints": 0,
        "train_batch_size_tokens": 64, "n_eval_batches": 1,
    }  # fmt: skip


def test_saelens_language_model_runner_and_evals_run_on_a_pair(pair, tmp_path):
    cfg = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=32, k=K),
        hook_name=f"{HOOKS[1]}.diff",
        output_path=str(tmp_path / "out"),
        checkpoint_path=str(tmp_path / "c"),
        **runner_kwargs(),
    )
    runner = LanguageModelSAETrainingRunner(
        cfg, override_dataset=text_dataset(), override_model=pair
    )
    runner.run()
    sae = SAE.load_from_disk(tmp_path / "out")
    assert sae.cfg.metadata.hook_name == f"{HOOKS[1]}.diff"
    config = EvalConfig(
        n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1, batch_size_prompts=2,
        compute_ce_loss=True, compute_kl=True, compute_l2_norms=True,
        compute_sparsity_metrics=True, compute_variance_metrics=True,
    )  # fmt: skip
    metrics, _ = run_evals(sae, runner.activations_store, pair, ActivationScaler(), config)
    # "Ablated" is the base model's activation put back, which costs far less than nothing at all.
    scores = metrics["model_performance_preservation"]
    assert scores["ce_loss_with_ablation"] < 20
    with pytest.raises(ValueError, match="no hook point of this pair"):
        sae.cfg.metadata.hook_name = HOOKS[1]
        run_evals(sae, runner.activations_store, pair, ActivationScaler(), config)


def test_saelens_multi_runner_trains_all_views_in_lockstep(pair, tmp_path):
    views = {"diff": D_MODEL, "concat": 2 * D_MODEL, "finetuned": D_MODEL}
    saes = {
        view: BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=32, k=K) for view, d_in in views.items()
    }
    cfg = MultiSAETrainingRunnerConfig(
        saes=saes,
        hook_names={view: f"{HOOKS[1]}.{view}" for view in views},
        output_path=str(tmp_path / "out"),
        checkpoint_path=str(tmp_path / "c"),
        **runner_kwargs(),
    )
    trained = MultiSAETrainingRunner(
        cfg, override_dataset=text_dataset(), override_model=pair
    ).run()
    assert {view: sae.cfg.d_in for view, sae in trained.items()} == views
    assert (tmp_path / "out" / "diff" / "cfg.json").exists()
