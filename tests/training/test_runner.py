import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.training.activation_scaler import ActivationScaler

from diffsae_lens._artifact import locked
from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.training._calibration import calibrate_threshold
from diffsae_lens.training._harvest import harvest
from diffsae_lens.training._normalization import Normalization
from diffsae_lens.training._runner import (
    CrosscoderRunnerConfig,
    DiffSAERunnerConfig,
    FinetunedSAERunnerConfig,
    TrainingRun,
    train_dictionaries,
)
from tests.conftest import D_MODEL, HOOKS

K = 4


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
        x = held_out[configs()[name].hook.name]
        assert explained(sae, x) > explained(short[name], x) + 0.2
        assert abs((sae.encode(x) > 0).float().sum(-1).mean() - K) <= 0.1 * K
        again = SAE.load_from_disk(tmp_path / "d" / name)
        assert torch.equal(again(x), sae(x))
        metadata = again.cfg.metadata
        assert metadata.hook_name == configs()[name].hook.name
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
        x = rows[config.hook.name]
        assert explained(late, x) > explained(early, x) + 0.02
        assert late.cfg.metadata.hook_name == config.hook.name
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
    stop_after(10, monkeypatch, activations, configs_(), activations, tmp_path / "d", run=run)
    resumed = train_dictionaries(configs_(), activations, tmp_path / "d", run=run)
    for name, sae in resumed.items():
        for weight, expected in whole[name].state_dict().items():
            assert torch.equal(sae.state_dict()[weight], expected), (name, weight)
    assert not (tmp_path / "checkpoints").exists()


def stop_after(n_batches, monkeypatch, found, *args, **kwargs):
    """Train until the power fails."""
    batches = type(found).batches

    def until_the_power_fails(self, *args, **kwargs):
        for i, batch in enumerate(batches(self, *args, **kwargs)):
            if i == n_batches:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(type(found), "batches", until_the_power_fails)
        with pytest.raises(KeyboardInterrupt):
            train_dictionaries(*args, **kwargs)


def checkpointed(tmp_path, **kwargs):
    options = {"n_steps": 12, "n_checkpoints": 2, "checkpoint_path": str(tmp_path / "checkpoints")}
    return training_run(tmp_path, **(options | kwargs))


def test_the_checkpoint_of_another_run_is_refused(activations, tmp_path, monkeypatch):
    run = checkpointed(tmp_path)
    stop_after(10, monkeypatch, activations, configs(), activations, tmp_path / "d", run=run)
    for change, said in (
        ({"lr": 1e-3}, "trainer.lr: 0.003 there, 0.001 asked for"),
        ({"adam_beta1": 0.5}, "trainer.adam_beta1: 0.9 there, 0.5 asked for"),
        ({"total_training_samples": 640}, "trainer.total_training_samples"),
        ({"train_batch_size_samples": 32}, "trainer.train_batch_size_samples"),
        ({"lr_decay_steps": 2}, "trainer.lr_decay_steps"),
    ):
        other = TrainingRun(trainer=replace(run.trainer, **change))
        with pytest.raises(ValueError, match=said):
            train_dictionaries(configs(), activations, tmp_path / "d", run=other)
    with pytest.raises(ValueError, match="seed: 0 there, 1 asked for"):
        other = TrainingRun(trainer=run.trainer, seed=1)
        train_dictionaries(configs(), activations, tmp_path / "b", run=other)
    # What changes nothing about the result may change.
    trainer = replace(run.trainer, n_checkpoints=3, save_final_checkpoint=True)
    train_dictionaries(configs(), activations, tmp_path / "d", run=TrainingRun(trainer=trainer))
    left = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]
    assert left == ["final_768"]


def test_checkpoints_of_others_are_refused_and_never_touched(activations, tmp_path):
    (tmp_path / "checkpoints/640").mkdir(parents=True)
    (tmp_path / "checkpoints/640/weights").write_text("mine")
    with pytest.raises(ValueError, match=r"`trainer.checkpoint_path`.*is not touched"):
        train_dictionaries(configs(), activations, tmp_path / "d", run=checkpointed(tmp_path))
    assert (tmp_path / "checkpoints/640/weights").read_text() == "mine"


def test_notes_beside_the_checkpoints_stay(activations, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/notes.txt").write_text("mine")
    train_dictionaries(configs(), activations, tmp_path / "d", run=checkpointed(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["notes.txt"]


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_not_gone_on_with(
    activations, tmp_path, monkeypatch, caplog
):
    run = checkpointed(tmp_path)
    whole = train_dictionaries(configs(), activations, tmp_path / "whole", run=run)
    stop_after(10, monkeypatch, activations, configs(), activations, tmp_path / "d", run=run)
    newest = max(tmp_path.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    flip(newest / "diff-sae/sae_weights.safetensors")
    resumed = train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    assert "diff-sae/sae_weights.safetensors was changed" in caplog.text
    for name in configs():
        assert torch.equal(resumed[name].W_dec, whole[name].W_dec)
    assert not (tmp_path / "checkpoints").exists()


def test_a_dictionary_of_other_settings_is_refused_before_training(
    activations, tmp_path, monkeypatch, pair
):
    run = training_run(tmp_path, n_steps=2)
    train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    monkeypatch.setattr("diffsae_lens.training._runner.MultiSAETrainer", None)
    other = configs()
    other["diff-sae"].sae.k = K + 1
    with pytest.raises(ValueError, match="d/diff-sae .*sae.k: 4 there, 5 asked for"):
        train_dictionaries(other, activations, tmp_path / "d", run=run)
    other = configs()
    other["diff-sae"] = replace(other["diff-sae"], normalization=Normalization())
    with pytest.raises(ValueError, match="normalization: None there"):
        train_dictionaries(other, activations, tmp_path / "d", run=run)
    with pytest.raises(ValueError, match="trainer.lr: 0.003 there, 0.1 asked for"):
        changed = TrainingRun(trainer=replace(run.trainer, lr=0.1))
        train_dictionaries(configs(), activations, tmp_path / "d", run=changed)
    with pytest.raises(ValueError, match="calibration_fraction: 0.1 there"):
        changed = TrainingRun(trainer=run.trainer, calibration_fraction=0.3)
        train_dictionaries(configs(), activations, tmp_path / "d", run=changed)
    tokens = torch.randint(3, 259, (64, 12), generator=torch.Generator().manual_seed(7))
    another = harvest(pair, tokens, tmp_path / "h2", hook_names=activations.hook_names)
    with pytest.raises(ValueError, match="harvest.tokens_sha256"):
        train_dictionaries(configs(), another, tmp_path / "d", run=run)
    # The device, logging and checkpoints do not change what a dictionary is.
    again = TrainingRun(trainer=replace(run.trainer, n_checkpoints=1, checkpoint_path="c"))
    train_dictionaries(configs(), activations, tmp_path / "d", run=again)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_a_damaged_dictionary_is_named_and_made_anew_alone(
    activations, tmp_path, caplog, normalize
):
    def configs_():
        found = configs()
        found["crosscoder"].sae.normalize_activations = normalize
        return found

    run = training_run(tmp_path, n_steps=4, n_batches_for_norm_estimate=3)
    train_dictionaries(configs_(), activations, tmp_path / "d", run=run)
    kept = tmp_path / "d/crosscoder/sae_weights.safetensors"
    weights = tmp_path / "d/diff-sae/sae_weights.safetensors"
    stamp, expected = kept.stat().st_mtime_ns, weights.read_bytes()
    flip(weights)
    train_dictionaries(configs_(), activations, tmp_path / "d", run=run)
    assert "sae_weights.safetensors was changed" in caplog.text
    assert (tmp_path / "d/diff-sae.damaged").exists()
    assert weights.read_bytes() == expected
    assert kept.stat().st_mtime_ns == stamp


def test_a_training_that_diverged_saves_nothing(activations, tmp_path):
    run = checkpointed(tmp_path)
    run = TrainingRun(trainer=replace(run.trainer, lr=1e30))
    with pytest.raises(
        ValueError, match=r"diverged: the weights of .*diff-sae.*smaller `trainer.lr`"
    ):
        train_dictionaries(sparse_configs(), activations, tmp_path / "d", run=run)
    assert not list(tmp_path.glob("d/*/cfg.json"))
    assert not (tmp_path / "checkpoints").exists()
    run = checkpointed(tmp_path)
    train_dictionaries(sparse_configs(), activations, tmp_path / "d", run=run)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_has_gradients_whatever_the_caller_set(activations, tmp_path, mode):
    run = training_run(tmp_path, n_steps=3)
    expected = train_dictionaries(sparse_configs(), activations, tmp_path / "a", run=run)
    with mode():
        found = train_dictionaries(sparse_configs(), activations, tmp_path / "b", run=run)
        assert not torch.is_grad_enabled()
    for name, sae in expected.items():
        assert torch.equal(found[name].W_dec, sae.W_dec)


class FakeWandb:
    """Raises as wandb does where no run is open."""

    Histogram = staticmethod(len)

    def __init__(self):
        self.run, self.opened, self.closed, self.logged = None, [], 0, 0

    def init(self, **kwargs):
        self.opened.append(kwargs)
        self.run = self
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed += 1
        self.run = None

    def log(self, *_, **__):
        if self.run is None:
            raise RuntimeError("You must call wandb.init() before wandb.log()")
        self.logged += 1


@pytest.mark.parametrize("is_open", [False, True])
def test_a_wandb_run_is_opened_and_closed_unless_one_is_open(
    activations, tmp_path, monkeypatch, is_open
):
    fake = FakeWandb()
    for module in ("training.multi_sae_trainer", "training.sae_trainer", "config"):
        monkeypatch.setattr(f"sae_lens.{module}.wandb", fake)
    monkeypatch.setattr("diffsae_lens.training._runner.wandb", fake)
    if is_open:
        fake.init()
    logging_config = LoggingConfig(
        log_to_wandb=True, wandb_project="diffing", run_name="a", wandb_log_frequency=1
    )
    run = training_run(tmp_path, n_steps=3, logger=logging_config)
    train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    assert fake.logged >= 3
    assert len(fake.opened) == 1
    assert fake.closed == (not is_open)
    if not is_open:
        assert fake.opened[0]["project"] == "diffing"
        assert fake.opened[0]["config"]["diff-sae"]["trainer"]["lr"] == 3e-3


def test_metadata_say_which_tokens_were_left_out(activations, tmp_path, tokenizer):
    run = training_run(tmp_path, n_steps=1)
    trained = train_dictionaries(configs(), activations, tmp_path / "d", run=run)
    stored = trained["diff-sae"].cfg.metadata.diffsae_lens
    assert stored["ignored_token_ids"] == sorted(tokenizer.all_special_ids)
    assert stored["skip_positions"] == 1
    assert stored["pair"]["finetuned_fingerprint"]
    json.dumps(stored, allow_nan=False)


def test_a_second_run_on_the_same_folder_waits_and_opens(activations, tmp_path, caplog):
    run = checkpointed(tmp_path, n_steps=30)

    def train():
        return train_dictionaries(sparse_configs(), activations, tmp_path / "d", run=run)

    with ThreadPoolExecutor(1) as pool, locked(tmp_path / "d"):
        other = pool.submit(train)
        while "waiting for another process" not in caplog.text:
            time.sleep(0.01)
        assert not (tmp_path / "d").exists()
        # What the first one would have done.
        train_dictionaries(sparse_configs(), activations, tmp_path / "first", run=run)
        (tmp_path / "first").rename(tmp_path / "d")
        stamp = (tmp_path / "d/diff-sae/cfg.json").stat().st_mtime_ns
    assert set(other.result()) == set(sparse_configs())
    assert (tmp_path / "d/diff-sae/cfg.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", ["..", ".", "", "a.partial", "a/b", ".hidden", "x" * 300])
def test_names_that_cannot_be_folders_are_refused_before_training(activations, tmp_path, name):
    with pytest.raises(ValueError, match="becomes a folder"):
        train_dictionaries(
            {name: configs()["diff-sae"]}, activations, tmp_path / "d", run=training_run(tmp_path)
        )
    assert not (tmp_path / "d").exists()


def test_bad_settings_are_refused_when_they_are_made(tmp_path):
    for change, error in (
        ({"lr": float("inf")}, ValueError),
        ({"lr": -1.0}, ValueError),
        ({"lr": "fast"}, TypeError),
        ({"total_training_samples": 32}, ValueError),
        ({"total_training_samples": 64.5}, TypeError),
        ({"train_batch_size_samples": 0}, ValueError),
        ({"adam_beta1": 1.0}, ValueError),
        ({"lr_warm_up_steps": -1}, ValueError),
        ({"n_checkpoints": -1}, ValueError),
    ):
        trainer = replace(training_run(tmp_path).trainer, **change)
        with pytest.raises(error, match=f"`trainer.{next(iter(change))}` must be"):
            TrainingRun(trainer=trainer)
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        TrainingRun(trainer=training_run(tmp_path).trainer, seed=-1)
    sizes = {"d_in": D_MODEL, "d_sae": 48, "k": K}
    for change, error in (
        ({"k": 49}, ValueError),
        ({"k": 0}, ValueError),
        ({"d_sae": 0}, ValueError),
        ({"d_in": 1.5}, TypeError),
    ):
        for config in (BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig):
            sae = config(**(sizes | change))
            with pytest.raises(error, match=f"`sae.{next(iter(change))}` must be"):
                DiffSAERunnerConfig(hook_name=HOOKS[1], sae=sae)


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
    with pytest.raises(ValueError, match="`k` must be .*at most 32"):
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
    with pytest.raises(ValueError, match="is not a hook point of this pair"):
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
