"""The published dictionaries against their formulas, re-derived with F.linear and plain autograd."""

import torch
import torch.nn.functional as F
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from diffsae_lens.dictionaries import (
    PaperCrosscoderTrainingSAEConfig,
    PaperDiffSAETrainingSAEConfig,
)

D, D_SAE = 6, 30


def build(config):
    torch.manual_seed(0)
    return TrainingSAE.from_dict(config.to_dict())


def step(sae, x):
    step_input = TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )
    return sae.training_forward_pass(step_input)


def batch(seed, d_in):
    return torch.randn(16, d_in, generator=torch.Generator().manual_seed(seed)).double()


def published(sae, loss, *, d_in, n_steps, normalize):
    """Losses of a published training loop: one tied weight `[d_sae, d_in]`, clip 1, Adam 1e-2."""
    weight = sae.W_enc.detach().T.clone().requires_grad_()
    b_enc = sae.b_enc.detach().clone().requires_grad_()
    b_dec = sae.b_dec.detach().clone().requires_grad_()
    parameters = [weight, b_enc, b_dec]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    silent = torch.zeros(D_SAE)
    losses = []
    for i in range(n_steps):
        optimizer.zero_grad()
        value, features = loss(batch(i, d_in), weight, b_enc, b_dec, silent)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if normalize:
            weight.data = F.normalize(weight.data, dim=0)
        silent = (silent + 1) * ~(features > 0).any(0)
        losses.append(value.item())
    return losses, weight.detach()


def ours(sae, *, d_in, n_steps):
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = []
    for i in range(n_steps):
        optimizer.zero_grad()
        output = step(sae, batch(i, d_in))
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        losses.append(output.loss.item())
    return losses


def test_diff_sae_trains_as_published_ghost_term_and_normalisation_included(tmp_path):
    config = PaperDiffSAETrainingSAEConfig(
        d_in=D, d_sae=D_SAE, dtype="float64", l1_coefficient=0.01, dead_after_steps=3
    )
    sae = build(config)
    with torch.no_grad():
        sae.b_enc[:8] = -50  # eight features that never fire, for the ghost term
    n_ghosts = []

    def loss(x, weight, b_enc, b_dec, silent):
        features = F.relu(F.linear(x, weight, b_enc))
        rebuilt = F.linear(features, weight.T, b_dec)
        value = F.mse_loss(rebuilt, x) + 0.01 * features.abs().mean()
        dead = silent > 3
        n_ghosts.append(int(dead.sum()))
        if dead.any():
            residual = (x - rebuilt).detach()
            value = value - 0.1 * F.relu(F.linear(residual, weight[dead])).mean()
        return value, features

    expected, weight = published(sae, loss, d_in=D, n_steps=20, normalize=True)
    assert max(n_ghosts) >= 8
    torch.testing.assert_close(ours(sae, d_in=D, n_steps=20), expected)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "standard"
    torch.testing.assert_close(loaded.W_enc.T, weight, check_dtype=False)
    torch.testing.assert_close(loaded.W_dec, loaded.W_enc.T)
    # Unit norm of each input dimension over the features, not of each feature.
    norms = loaded.W_enc.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_crosscoder_trains_as_published(tmp_path):
    config = PaperCrosscoderTrainingSAEConfig(
        d_in=2 * D, d_sae=D_SAE, k=4, dtype="float64", l1_coefficient=0.01
    )
    sae = build(config)

    def loss(x, weight, b_enc, b_dec, silent):
        acts = F.relu(F.linear(x, weight, b_enc))
        mask = torch.zeros_like(acts).scatter(1, acts.topk(4, dim=-1).indices, 1.0)
        features = acts * mask
        rebuilt = F.linear(features, weight.T, b_dec)
        halves = F.mse_loss(rebuilt[:, :D], x[:, :D]) + F.mse_loss(rebuilt[:, D:], x[:, D:])
        return halves / 2 + 0.01 * features.abs().mean(), features

    expected, _ = published(sae, loss, d_in=2 * D, n_steps=20, normalize=False)
    torch.testing.assert_close(ours(sae, d_in=2 * D, n_steps=20), expected)
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "topk"
    x = batch(99, 2 * D)
    torch.testing.assert_close(loaded(x), sae(x))
