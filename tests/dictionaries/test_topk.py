"""The sparse dictionaries against SAELens's dense ones: the same loss, gradients and trajectory."""

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput

from diffsae_lens.dictionaries import (
    SparseBatchTopKTrainingSAE,
    SparseBatchTopKTrainingSAEConfig,
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)

D_IN, D_SAE = 8, 120
DENSE = {
    SparseTopKTrainingSAE: (TopKTrainingSAE, TopKTrainingSAEConfig, SparseTopKTrainingSAEConfig),
    SparseBatchTopKTrainingSAE: (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        SparseBatchTopKTrainingSAEConfig,
    ),
}


def twins(sparse_class, **options):
    """A sparse dictionary and its dense reference, in double precision with the same weights."""
    dense_class, dense_config, sparse_config = DENSE[sparse_class]
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": 4, "dtype": "float64"} | options
    torch.manual_seed(0)
    dense = dense_class(dense_config(**options))
    with torch.no_grad():  # decoder norms that differ, else the scaling is not tested
        dense.W_dec *= torch.rand(D_SAE, 1, dtype=torch.double) + 0.5
    sparse = sparse_class(sparse_config(**options))
    sparse.load_state_dict(dense.state_dict())
    return sparse, dense


def step(sae, x, dead=None):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def batch(seed, n_rows=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, D_IN, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("sparse_class", list(DENSE))
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("b_dec_to_input", [True, False])
@pytest.mark.parametrize("n_dead", [0, 3, 100])
def test_trajectory_is_that_of_the_dense_reference(sparse_class, rescale, b_dec_to_input, n_dead):
    sparse, dense = twins(
        sparse_class, rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=b_dec_to_input
    )
    dead = torch.arange(D_SAE) < n_dead
    optimizers = [torch.optim.Adam(sae.parameters(), lr=1e-2) for sae in (sparse, dense)]
    for i in range(20):
        outputs = [step(sae, batch(i), dead) for sae in (sparse, dense)]
        torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
    for name, parameter in dense.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[name], parameter, rtol=1e-6, atol=1e-8)
    fired = [output.feature_acts.bool().float().to_dense() for output in outputs]
    assert torch.equal(*fired)


@pytest.mark.parametrize("sparse_class", list(DENSE))
def test_saved_for_inference_it_is_sae_lens_own_format(sparse_class, tmp_path):
    sparse, dense = twins(sparse_class)
    step(sparse, batch(0))
    step(dense, batch(0))
    sparse.save_inference_model(tmp_path / "sparse")
    dense.save_inference_model(tmp_path / "dense")
    loaded = [SAE.load_from_disk(tmp_path / name) for name in ("sparse", "dense")]
    assert type(loaded[0]) is type(loaded[1])
    torch.testing.assert_close(loaded[0](batch(1)), loaded[1](batch(1)))


@pytest.mark.parametrize("sparse_class", list(DENSE))
def test_training_goes_on_from_a_saved_checkpoint(sparse_class, tmp_path):
    sparse, _ = twins(sparse_class)
    step(sparse, batch(0))
    sparse.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    assert torch.equal(step(again, batch(1)).loss, step(sparse, batch(1)).loss)


def test_activations_normalised_by_row_are_refused():
    with pytest.raises(ValueError, match="must not depend on the row"):
        twins(SparseTopKTrainingSAE, normalize_activations="layer_norm")
