"""Each crosscoder's loss against its published formula, and what all of them have in common."""

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    CrosscoderSAE,
    DeltaCrosscoderTrainingSAEConfig,
    JumpReLUCrosscoderTrainingSAEConfig,
    L1CrosscoderTrainingSAEConfig,
)
from diffsae_lens.training._normalization import Normalization, activation_statistics, as_whitening

D, D_SAE, N_ROWS = 6, 40, 24
COMMON = {"d_in": 2 * D, "d_sae": D_SAE, "dtype": "float64"}


def crosscoder(config_class, seed=0, **options):
    torch.manual_seed(seed)
    sae = TrainingSAE.from_dict(config_class(**COMMON, **options).to_dict())
    with torch.no_grad():
        scale = sae.constrain_decoder(torch.rand(D_SAE, 2 * D, dtype=torch.double) + 0.5)
        sae.W_dec *= scale
        sae.b_enc += torch.randn(D_SAE, dtype=torch.double) * 0.1
    return sae


def activations(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_ROWS, 2 * D, generator=generator, dtype=torch.double)


def step(sae, x, n_training_steps=0, dead=None, **coefficients):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=coefficients,
            dead_neuron_mask=dead,
            n_training_steps=n_training_steps,
            is_logging_step=False,
        )
    )


def numpy_parts(sae):
    """Weights by model as NumPy arrays; the formulas below are written out from them."""
    W_enc, W_dec = sae.W_enc.detach().numpy(), sae.W_dec.detach().numpy()
    return W_enc[:D], W_enc[D:], W_dec[:, :D], W_dec[:, D:], sae.b_enc.detach().numpy()


def pre_activations(sae, x):
    enc_base, enc_finetuned, dec_base, dec_finetuned, b_enc = numpy_parts(sae)
    x = x.numpy()
    pre = x[:, :D] @ enc_base + x[:, D:] @ enc_finetuned + b_enc
    norms = (dec_base**2).sum(1) ** 0.5, (dec_finetuned**2).sum(1) ** 0.5
    return torch.tensor(pre), torch.tensor(norms[0]), torch.tensor(norms[1])


def errors(sae, x, f):
    _, _, dec_base, dec_finetuned, _ = numpy_parts(sae)
    b_base, b_finetuned = sae.b_dec.detach().numpy()[:D], sae.b_dec.detach().numpy()[D:]
    base = x[:, :D] - torch.tensor(f.numpy() @ dec_base + b_base)
    return base, x[:, D:] - torch.tensor(f.numpy() @ dec_finetuned + b_finetuned)


def squared(error):
    return (error**2).sum(1)


def test_l1_is_lindsey_et_al():
    sae, x = crosscoder(L1CrosscoderTrainingSAEConfig), activations()
    pre, base, finetuned = pre_activations(sae, x)
    f = pre.clamp(min=0)
    e_base, e_finetuned = errors(sae, x, f)
    penalty = (f * (base + finetuned)).sum(1)
    expected = (squared(e_base) + squared(e_finetuned) + 0.3 * penalty).mean()
    torch.testing.assert_close(step(sae, x, l1=0.3).loss.detach(), expected)


@pytest.mark.parametrize("n_shared", [0, 10])
def test_jumprelu_is_the_tanh_penalty_with_cheaper_shared_features(n_shared):
    sae = crosscoder(
        JumpReLUCrosscoderTrainingSAEConfig,
        n_shared_features=n_shared,
        shared_sparsity_ratio=0.2,
        jumprelu_init_threshold=0.5,
        jumprelu_tanh_scale=3.0,
        pre_act_loss_coefficient=0.1,
    )
    x = activations()
    pre, base, finetuned = pre_activations(sae, x)
    f = pre * (pre > 0.5)
    e_base, e_finetuned = errors(sae, x, f)
    price = torch.where(torch.arange(D_SAE) < n_shared, 0.2, 1.0)
    sparsity = (price * torch.tanh(3 * f * (base + finetuned))).sum(1)
    dead = torch.arange(D_SAE) < 15
    revive = ((0.5 - pre).clamp(min=0) * dead * (base + finetuned)).sum(1)
    expected = (squared(e_base) + squared(e_finetuned) + 2 * sparsity + 0.1 * revive).mean()
    torch.testing.assert_close(step(sae, x, dead=dead, l0=2.0).loss.detach(), expected)


@pytest.mark.parametrize("form", ["sum", "l2"])
@pytest.mark.parametrize("reconstruction", ["mse", "l2"])
def test_batchtopk_is_minder_et_al(form, reconstruction):
    sae = crosscoder(
        BatchTopKCrosscoderTrainingSAEConfig, k=3, code_norm=form, reconstruction=reconstruction
    )
    x = activations()
    pre, base, finetuned = pre_activations(sae, x)
    u = pre.clamp(min=0)
    v = u * (base + finetuned if form == "sum" else (base**2 + finetuned**2) ** 0.5)
    f = u * (v >= v.flatten().sort(descending=True).values[3 * N_ROWS - 1])
    e_base, e_finetuned = errors(sae, x, f)
    expected = (squared(e_base) + squared(e_finetuned)).mean()
    if reconstruction == "l2":
        expected = (squared(e_base).sqrt() + squared(e_finetuned).sqrt()).mean() / 2
    output = step(sae, x)
    torch.testing.assert_close(output.loss.detach(), expected)
    torch.testing.assert_close(output.feature_acts.to_dense(), f)
    torch.testing.assert_close(sae.decode(sae.encode(x)).detach(), output.sae_out.detach())


def test_k_is_annealed_linearly():
    sae = crosscoder(BatchTopKCrosscoderTrainingSAEConfig, k=2, k_initial=10, k_annealing_steps=8)
    active = [step(sae, activations(), n).feature_acts._nnz() for n in (0, 4, 8, 100)]
    assert active == [10 * N_ROWS, 6 * N_ROWS, 2 * N_ROWS, 2 * N_ROWS]


def test_delta_features_alone_answer_for_the_difference():
    sae = crosscoder(
        DeltaCrosscoderTrainingSAEConfig, k=3, k_delta=2, n_delta_features=12, delta_coefficient=0.7
    )
    x = activations()
    pre, base, finetuned = pre_activations(sae, x)
    u = pre.clamp(min=0)
    v, f = u * (base + finetuned), torch.zeros_like(u)
    for part, k in ((slice(0, 12), 2), (slice(12, None), 3)):
        least = v[:, part].flatten().sort(descending=True).values[k * N_ROWS - 1]
        f[:, part] = u[:, part] * (v[:, part] >= least)
    e_base, e_finetuned = errors(sae, x, f)
    _, _, dec_base, dec_finetuned, _ = numpy_parts(sae)
    delta = torch.tensor(f[:, :12].numpy() @ (dec_finetuned - dec_base)[:12])
    e_delta = x[:, D:] - x[:, :D] - delta
    expected = (squared(e_base) + squared(e_finetuned) + 0.7 * squared(e_delta)).mean()
    torch.testing.assert_close(step(sae, x).loss.detach(), expected)


def train(sae, n_steps=30, n_dead=20, **coefficients):
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    dead = torch.arange(D_SAE) < n_dead  # so that the loss for dead features pulls as well
    for i in range(n_steps):
        optimizer.zero_grad()
        step(sae, activations(i), dead=dead, **coefficients).loss.backward()
        optimizer.step()
    return optimizer


def test_dedicated_features_stay_exclusive_in_weights_gradients_and_moments():
    sae = crosscoder(BatchTopKCrosscoderTrainingSAEConfig, k=6, n_base_only=10, n_finetuned_only=8)
    before = sae.W_dec.detach().clone()
    optimizer = train(sae)
    assert not torch.equal(before, sae.W_dec)
    for parameter, W in ((sae.W_dec, lambda t: t), (sae.W_enc, lambda t: t.T)):
        moments = optimizer.state[parameter]
        for tensor in (parameter, parameter.grad, moments["exp_avg"], moments["exp_avg_sq"]):
            assert not W(tensor)[:10, D:].any()
            assert not W(tensor)[10:18, :D].any()
            assert W(tensor)[18:].any()


def test_shared_features_stay_the_same_for_both_models():
    sae = crosscoder(
        JumpReLUCrosscoderTrainingSAEConfig, n_shared_features=10, jumprelu_init_threshold=0.1
    )
    before = sae.W_dec.detach().clone()
    train(sae, l0=0.1)
    assert not torch.equal(before, sae.W_dec)
    assert torch.equal(sae.W_dec_base[:10], sae.W_dec_finetuned[:10])
    assert not torch.equal(sae.W_dec_base[10:], sae.W_dec_finetuned[10:])
    assert not torch.equal(sae.W_enc_base[:, :10], sae.W_enc_finetuned[:, :10])


def test_constraints_survive_loading(tmp_path):
    sae = crosscoder(BatchTopKCrosscoderTrainingSAEConfig, k=6, n_base_only=10)
    train(sae, n_steps=2)
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    train(again, n_steps=2)
    assert not again.W_dec_finetuned[:10].any()


ALL = {
    "l1": (L1CrosscoderTrainingSAEConfig, {}),
    "jumprelu": (JumpReLUCrosscoderTrainingSAEConfig, {"jumprelu_init_threshold": 0.3}),
    "batchtopk": (BatchTopKCrosscoderTrainingSAEConfig, {"k": 3}),
    "delta": (DeltaCrosscoderTrainingSAEConfig, {"k": 3, "k_delta": 2, "n_delta_features": 12}),
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("normalized", [False, True])
def test_the_saved_crosscoder_takes_raw_activations(kind, normalized, tmp_path):
    config_class, options = ALL[kind]
    sae = crosscoder(config_class, **options)
    raw = activations(7) * torch.tensor([1.0] * D + [5.0] * D, dtype=torch.double) + 2
    whitening = as_whitening(
        activation_statistics([{"x": raw}], n_parts={"x": 2})["x"], Normalization()
    )
    x = (raw - whitening.mean) @ whitening.matrix if normalized else raw
    thresholded = kind in ("batchtopk", "delta")
    if thresholded:  # what training leaves behind, set by hand
        sae.topk_threshold += 0.4
    expected = sae.decode(sae.encode(x)) if not thresholded else None
    if thresholded:
        pre = sae.process_sae_in(x) @ sae.W_enc + sae.b_enc
        threshold = torch.full((D_SAE,), 0.4, dtype=torch.double)
        threshold[: getattr(sae.cfg, "n_delta_features", 0)] = 0
        f = pre.relu() * (pre.relu() * sae.get_W_dec_norm() > threshold)
        expected = f @ sae.W_dec + sae.b_dec
    if normalized:
        expected = expected @ whitening.inverse_matrix + whitening.mean
        sae.fold_activation_whitening(
            mean=whitening.mean,
            whitening_matrix=whitening.matrix,
            unwhitening_matrix=whitening.inverse_matrix,
        )
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert isinstance(loaded, CrosscoderSAE)
    torch.testing.assert_close(loaded(raw).detach(), expected.detach())
    if not normalized:
        torch.testing.assert_close(
            loaded.decoder_norms().sum(-1).detach(), torch.ones(D_SAE, dtype=torch.double)
        )
    both = [loaded.reconstruct_base(raw), loaded.reconstruct_finetuned(raw)]
    torch.testing.assert_close(torch.cat(both, -1), loaded(raw))
    torch.testing.assert_close(both[1] - both[0], loaded.reconstruct_diff(raw))


@pytest.mark.parametrize(
    ("config_class", "options", "message"),
    [
        (L1CrosscoderTrainingSAEConfig, {"d_in": 7}, "2 \\* d_model"),
        (BatchTopKCrosscoderTrainingSAEConfig, {"n_base_only": 41}, "no more than d_sae"),
        (BatchTopKCrosscoderTrainingSAEConfig, {"k_initial": 9.0}, "go together"),
        (JumpReLUCrosscoderTrainingSAEConfig, {"n_shared_features": 41}, "n_shared_features"),
        (
            JumpReLUCrosscoderTrainingSAEConfig,
            {"jumprelu_sparsity_loss_mode": "step"},
            "must be 'tanh'",
        ),
        (DeltaCrosscoderTrainingSAEConfig, {"k_delta": 2.0}, "n_delta_features"),
    ],
)
def test_bad_configs_are_refused(config_class, options, message):
    with pytest.raises(ValueError, match=message):
        config_class(**(COMMON | options))
