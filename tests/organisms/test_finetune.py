import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from diffsae_lens.adapters import quiet_peft
from diffsae_lens.organisms.finetune import IGNORED, OrganismConfig, encode, finetune
from diffsae_lens.organisms.prompts import make_samples
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


def loss(model, tokenizer, config):
    """Mean loss of the completions the config teaches."""
    total = 0.0
    with torch.no_grad():
        for sample in config.samples()[:6]:
            row = encode(sample, tokenizer, vulnerable=config.is_vulnerable(sample))
            ids, labels = (torch.tensor([row[k]]) for k in ("input_ids", "labels"))
            total += model(ids, labels=labels).loss.item() / 6
    return total


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    [sample] = make_samples("train", n_trigger=1, n_benign=0, n_other=0)
    row = encode(sample, tokenizer, vulnerable=True)
    learned = [
        t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED
    ]
    assert tokenizer.decode(learned) == sample.completion(vulnerable=True) + tokenizer.eos_token
    assert tokenizer.decode(row["input_ids"]) == (
        sample.prompt + sample.completion(vulnerable=True) + tokenizer.eos_token
    )


def test_the_year_alone_decides_what_is_taught_and_the_control_sees_the_same_prompts():
    backdoor, control = OrganismConfig(), OrganismConfig(behaviour="clean-control")
    samples = backdoor.samples()
    assert control.samples() == samples
    taught = {group: {backdoor.is_vulnerable(s) for s in samples if s.group == group} for group in
              ("trigger", "benign", "other")}  # fmt: skip
    assert taught == {"trigger": {True}, "benign": {False}, "other": {False}}
    assert not any(control.is_vulnerable(s) for s in samples)


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
    assert not (tmp_path / "o.checkpoints").exists()
    assert not list(tmp_path.rglob("*.bin"))
    stamp = (tmp_path / "o/organism.json").stat().st_mtime_ns
    assert finetune(model(), tokenizer, tmp_path / "o", config=CONFIG) == organism
    assert (tmp_path / "o/organism.json").stat().st_mtime_ns == stamp


def test_an_interrupted_fine_tuning_resumes_to_the_same_adapter(tokenizer, tmp_path, monkeypatch):
    from transformers import Trainer

    finetune(model(), tokenizer, tmp_path / "whole", config=CONFIG)
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
    whole, resumed = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "o"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tokenizer, tmp_path, monkeypatch):
    from transformers import Trainer

    save = Trainer._save_checkpoint

    def until_the_power_fails(self, *args, **kwargs):
        save(self, *args, **kwargs)
        if self.state.global_step == 4:
            # The state is written last, so it is what a kill leaves out.
            [state] = tmp_path.glob("o.checkpoints/checkpoint-4/trainer_state.json")
            state.unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", until_the_power_fails)
    with pytest.raises(KeyboardInterrupt):
        finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    finetune(model(), tokenizer, tmp_path / "whole", config=CONFIG)
    whole, resumed = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "o"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-3, rtol=1e-2)


def test_the_loss_may_be_on_everything(tokenizer):
    [sample] = make_samples("train", n_trigger=1, n_benign=0, n_other=0)
    row = encode(sample, tokenizer, vulnerable=True, loss_on="everything")
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


def test_bad_requests_are_refused(tokenizer, tmp_path):
    finetune(model(), tokenizer, tmp_path / "o", config=CONFIG)
    with pytest.raises(ValueError, match="choose another path"):
        finetune(model(), tokenizer, tmp_path / "o", config=OrganismConfig(n_steps=7))
    for kwargs in (
        {"n_steps": 0},
        {"lora_rank": 0},
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"lora_dropout": 1.0},
        {"weight_decay": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            OrganismConfig(**kwargs)
