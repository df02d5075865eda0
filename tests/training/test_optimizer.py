import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens.dictionaries import SparseBatchTopKTrainingSAEConfig
from diffsae_lens.training._optimizer import fuse_adam


def trained(*, fused, n_steps=20):
    torch.manual_seed(0)
    config = SparseBatchTopKTrainingSAEConfig(d_in=8, d_sae=24, k=3, dtype="float64")
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=10**6, train_batch_size_samples=32, lr=1e-2, lr_end=1e-2
        ),
        TrainingSAE.from_dict(config.to_dict()),
        iter(()),
    )
    if fused:
        fuse_adam(trainer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        trainer.step(torch.randn(32, 8, generator=generator, dtype=torch.float64))
    return trainer


def test_fused_adam_takes_the_same_steps():
    plain, fused = trained(fused=False), trained(fused=True)
    start = trained(fused=False, n_steps=0).sae
    [group] = fused.optimizer.param_groups
    assert group["fused"]
    assert all(weight.is_contiguous() for weight in group["params"])
    assert not fused.sae.W_enc.is_contiguous()
    for name, weight in plain.sae.named_parameters():
        assert not torch.equal(weight, start.get_parameter(name))
        torch.testing.assert_close(weight, fused.sae.get_parameter(name))


@pytest.mark.parametrize("n_before", [0, 7])
def test_its_checkpoints_resume(tmp_path, n_before):
    whole = trained(fused=True, n_steps=n_before + 5)
    begun = trained(fused=True, n_steps=n_before)
    state = begun.optimizer.state_dict()
    resumed = trained(fused=True, n_steps=0)
    resumed.optimizer.load_state_dict(state)
    resumed.sae.load_state_dict(begun.sae.state_dict())
    generator = torch.Generator().manual_seed(1)
    batches = [
        torch.randn(32, 8, generator=generator, dtype=torch.float64) for _ in range(n_before + 5)
    ]
    for batch in batches[n_before:]:
        resumed.step(batch)
    for name, weight in whole.sae.named_parameters():
        torch.testing.assert_close(weight, resumed.sae.get_parameter(name))
