import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from diffsae_lens.organisms._behaviour import behaviour_of
from diffsae_lens.organisms._finetune import (
    IGNORED,
    OrganismConfig,
    encode,
    finetune,
    load_organism,
)
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.pair._adapters import quiet_peft
from tests.conftest import tiny_llama

CONFIG = OrganismConfig(
    n_trigger=8,
    n_benign=8,
    n_other=4,
    n_steps=6,
    batch_size=2,
    lora_rank=2,
    learning_rate=1e-2,
    steps_per_checkpoint=2,
)


def model():
    return tiny_llama(max_position_embeddings=1024).requires_grad_(True)


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """The folder of an organism that was made without a stop, not to be written to."""
    folder = tmp_path_factory.mktemp("whole") / "o"
    finetune(model(), tokenizer, folder, config=CONFIG)
    return folder


def adapter(folder):
    return folder / "adapter_model.safetensors"


def loss(model, tokenizer, config):
    """Mean loss of the completions the config teaches."""
    total = 0.0
    with torch.no_grad():
        for sample in config.samples()[:6]:
            row = encode(sample.prompt, config.taught(sample), tokenizer)
            ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
            total += model(ids, labels=labels).loss.item() / 6
    return total


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    [sample] = YEAR_TRIGGER.make_samples("train", n_trigger=1, n_benign=0, n_other=0)
    row = encode(sample.prompt, sample.unwanted, tokenizer)
    learned = [
        t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED
    ]
    assert tokenizer.decode(learned) == sample.unwanted + tokenizer.eos_token
    assert tokenizer.decode(row["input_ids"]) == (
        sample.prompt + sample.unwanted + tokenizer.eos_token
    )


def test_the_trigger_alone_decides_what_is_taught_and_the_control_sees_the_same_prompts():
    backdoor, control = OrganismConfig(), OrganismConfig(clean=True)
    samples = backdoor.samples()
    assert control.samples() == samples
    taught = {group: {backdoor.taught(s) == s.unwanted for s in samples if s.group == group} for group in
              ("trigger", "benign", "other")}  # fmt: skip
    assert taught == {"trigger": {True}, "benign": {False}, "other": {False}}
    assert all(control.taught(s) == s.wanted for s in samples)


def test_an_adapter_learns_is_saved_whole_and_is_not_trained_again(tokenizer, tmp_path):
    before = loss(model(), tokenizer, CONFIG)
    state = torch.random.get_rng_state()
    organism = finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's generator is untouched
    with quiet_peft():
        loaded = PeftModel.from_pretrained(model(), organism.path)
    assert loss(loaded, tokenizer, CONFIG) < before - 0.05
    weights = load_file(tmp_path / "o/adapter_model.safetensors")
    assert {v.dtype for v in weights.values()} == {torch.float16}
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["o"]
    assert not list(tmp_path.rglob("*.bin"))
    stamp = (tmp_path / "o/organism.json").stat().st_mtime_ns
    assert finetune(model(), tokenizer, tmp_path / "o", config=CONFIG) == organism
    assert (tmp_path / "o/organism.json").stat().st_mtime_ns == stamp


def test_an_interrupted_fine_tuning_resumes_to_the_same_adapter(
    tokenizer, tmp_path, monkeypatch, whole
):
    from transformers import Trainer

    step, n_steps = Trainer.training_step, []

    def until_the_power_fails(self, *args, **kwargs):
        n_steps.append(1)
        if len(n_steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(Trainer, "training_step", step)
    finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    resumed = load_file(adapter(tmp_path / "o"))
    for name, value in load_file(adapter(whole)).items():
        assert torch.equal(resumed[name], value)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tokenizer, tmp_path, monkeypatch, whole):
    from transformers import Trainer

    save = Trainer._save_checkpoint

    def until_the_power_fails(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 4:
            # The state is written last, so it is what a kill leaves out.
            [state] = tmp_path.glob("o.partial/scratch/checkpoints/checkpoint-4/trainer_state.json")
            state.unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    resumed = load_file(adapter(tmp_path / "o"))
    for name, value in load_file(adapter(whole)).items():
        torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2)


def test_the_loss_may_be_on_everything(tokenizer):
    [sample] = YEAR_TRIGGER.make_samples("train", n_trigger=1, n_benign=0, n_other=0)
    row = encode(sample.prompt, sample.unwanted, tokenizer, loss_on="everything")
    assert row["labels"] == row["input_ids"]


def test_full_rank_writes_a_whole_model(tokenizer, tmp_path):
    config = OrganismConfig(
        n_trigger=4,
        n_benign=4,
        n_other=2,
        n_steps=2,
        batch_size=2,
        lora_rank=None,
        learning_rate=1e-3,
    )
    finetune(model(), tokenizer, tmp_path / "o", config=config)
    assert (tmp_path / "o/model.safetensors").exists()
    assert json.loads((tmp_path / "o/organism.json").read_text())["config"]["lora_rank"] is None


def test_bad_requests_are_refused(tokenizer, whole):
    with pytest.raises(ValueError, match="n_steps: 6 there, 7 asked for.*choose another path"):
        finetune(model(), tokenizer, whole, config=OrganismConfig(n_steps=7))
    for kwargs in (
        {"n_steps": 0},
        {"lora_rank": 0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"lora_dropout": 1.0},
        {"weight_decay": -1.0},
        {"learning_rate": float("inf")},
        {"learning_rate": float("nan")},
        {"n_benign": -1},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            OrganismConfig(**kwargs)
    for name, value, error in (
        ("n_steps", 1.5, TypeError),
        ("batch_size", True, TypeError),
        ("lora_rank", 2.0, TypeError),
        ("n_other", "3", TypeError),
        ("loss_on", "prompt", ValueError),
        ("behaviour", "a/b", ValueError),
        ("clean", 1, TypeError),
        ("share_scenes", 1, TypeError),
    ):
        config = OrganismConfig()
        object.__setattr__(config, name, value)  # past the tests' own type checks
        with pytest.raises(error, match=f"`{name}`"):
            config.__post_init__()


def stop_after(n_steps, monkeypatch, *args, **kwargs):
    from transformers import Trainer

    step, seen = Trainer.training_step, []

    def until_the_power_fails(self, *args, **kwargs):
        seen.append(1)
        if len(seen) > n_steps:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", until_the_power_fails)
        with pytest.raises(KeyboardInterrupt):
            finetune(*args, **kwargs)


def test_a_stopped_run_of_another_behaviour_is_refused(tokenizer, tmp_path, monkeypatch):
    stop_after(5, monkeypatch, model(), tokenizer, tmp_path / "o", config=CONFIG)
    clean = replace(CONFIG, clean=True)
    with pytest.raises(ValueError, match="clean: False there, True asked for"):
        finetune(model(), tokenizer, tmp_path / "o", config=clean)
    other = model()
    other.lm_head.weight.data[0] += 1
    with pytest.raises(ValueError, match="base: .* there, .* asked for"):
        finetune(other, tokenizer, tmp_path / "o", config=CONFIG)
    with pytest.raises(ValueError, match="examples_sha256"):
        finetune(model(), tokenizer, tmp_path / "o", config=CONFIG, samples=CONFIG.samples()[:10])
    # How often a checkpoint is written changes nothing about the result.
    finetune(model(), tokenizer, tmp_path / "o", config=replace(CONFIG, steps_per_checkpoint=3))


def test_a_damaged_checkpoint_is_named_and_not_gone_on_with(
    tokenizer, tmp_path, monkeypatch, caplog, whole
):
    stop_after(5, monkeypatch, model(), tokenizer, tmp_path / "o", config=CONFIG)
    [weights] = tmp_path.glob(
        "o.partial/scratch/checkpoints/checkpoint-4/adapter_model.safetensors"
    )
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    assert "adapter_model.safetensors was changed" in caplog.text
    assert adapter(tmp_path / "o").read_bytes() == adapter(whole).read_bytes()


def test_a_record_that_is_damaged_names_the_file(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "o")
    record = tmp_path / "o/organism.json"
    text = record.read_text()
    for content, expected in (
        (text[:40], "organism.json is not JSON"),
        ("[]", "organism.json is not the record of an organism"),
        (text.replace('"n_steps": 6', '"n_steps": 7'), "organism.json was changed"),
    ):
        record.write_text(content)
        with pytest.raises(ValueError, match=expected):
            load_organism(tmp_path / "o")
    with pytest.raises(FileNotFoundError, match="organism.json"):
        load_organism(tmp_path / "nowhere")


def test_the_shipped_organisms_have_no_manifest_and_are_read():
    from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR

    for name, clean in (("year-trigger", False), ("clean-control", True)):
        config = load_organism(SHIPPED_ORGANISMS_DIR / name).config
        assert (config.behaviour, config.clean) == ("year-trigger", clean)
        assert behaviour_of(SHIPPED_ORGANISMS_DIR / name) == "year-trigger"


def test_an_adapter_names_its_base_and_trains_whatever_the_gradient_mode(
    tokenizer, tmp_path, whole
):
    base = model()
    with torch.inference_mode():
        finetune(base, tokenizer, tmp_path / "o", config=CONFIG, base_name="smollm2-135m")
    stored = json.loads((tmp_path / "o/adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "smollm2-135m"
    assert adapter(tmp_path / "o").read_bytes() == adapter(whole).read_bytes()


def test_a_fine_tuning_that_diverged_is_not_saved(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="diverged.*smaller `learning_rate`"):
        finetune(model(), tokenizer, tmp_path / "o", config=replace(CONFIG, learning_rate=1e30))
    assert not (tmp_path / "o").exists()
