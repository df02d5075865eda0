"""What a dictionary's features are: decoder geometry, latent scaling, examples, variance, loss."""

import copy
import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens import dictionaries, effects, interventions, isolation, measures, reading
from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    CrosscoderSAE,
    CrosscoderSAEConfig,
    L1CrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._decoding import decoder_halves
from diffsae_lens.measures._geometry import (
    call_by_decoder_norm,
    decoder_cosine,
    relative_decoder_norm,
)
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.reading._features import describe_features, max_activating_examples
from diffsae_lens.reading._latent_scaling import latent_scaling
from diffsae_lens.reading._reconstruction import reconstruction, recovered
from diffsae_lens.training._calibration import calibrate_threshold
from diffsae_lens.training._normalization import ActivationStatistics
from tests.conftest import D_MODEL, HOOKS, tiny_llama

D = 16
MODULES = [
    importlib.import_module(module.name)
    for package in (dictionaries, effects, interventions, isolation, measures, reading)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
RECORDS = {
    found
    for module in MODULES
    for found in vars(module).values()
    if dataclasses.is_dataclass(found) and found.__module__.startswith("diffsae_lens.")
}
# Planted: what each feature writes in the base and in the fine-tuned model.
TRUTH = {
    "finetuned-only": (0.0, 1.0),
    "base-only": (1.0, 0.0),
    "shared": (1.0, 1.0),
    "rescaled": (0.35, 1.0),
}
N_EACH = 2


def planted(n_tokens, seed):
    """Activations of both models from known sparse features with orthogonal directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]
    scale = torch.tensor([TRUTH[kind] for kind in TRUTH for _ in range(N_EACH)])
    fires = torch.rand(n_tokens, len(scale), generator=generator) < 0.15
    codes = fires * (1 + torch.rand(n_tokens, len(scale), generator=generator))
    directions = directions[: len(scale)]
    return torch.cat([(codes * scale[:, m]) @ directions for m in (0, 1)], -1), directions


def train(config, n_steps=600):
    generator = torch.Generator().manual_seed(3)
    data, _ = planted(8192, seed=1)

    def batches():
        while True:
            yield data[torch.randint(len(data), (256,), generator=generator)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = TrainingSAE.from_dict(config.to_dict())
        trainer = SAETrainer(
            SAETrainerConfig(
                total_training_samples=256 * n_steps, train_batch_size_samples=256, lr=3e-3,
                lr_end=1e-4, lr_decay_steps=n_steps // 2, dead_feature_window=50,
            ),
            sae,
            batches(),
        )  # fmt: skip
        return trainer.fit()


def to_inference(sae, path):
    sae.save_inference_model(path)
    return SAE.load_from_disk(path)


def matched(crosscoder, directions):
    """The feature that stands for each planted one: the closest decoder direction that fires."""
    base, finetuned = decoder_halves(crosscoder)
    live = crosscoder.encode(planted(2000, seed=9)[0]).sum(0) > 0
    strongest = torch.where((base.norm(dim=-1) > finetuned.norm(dim=-1))[:, None], base, finetuned)
    cosines = torch.nn.functional.normalize(strongest, dim=-1) @ directions.T
    return cosines.masked_fill(~live[:, None], -1).argmax(0)


def test_planted_features_are_called_what_they_are(tmp_path):
    config = BatchTopKCrosscoderTrainingSAEConfig(d_in=2 * D, d_sae=12, k=1.2)
    crosscoder = to_inference(train(config), tmp_path)
    held_out, directions = planted(4000, seed=5)
    calibrate_threshold(crosscoder, held_out, k=1.2)
    features = matched(crosscoder, directions)
    relative = relative_decoder_norm(*decoder_halves(crosscoder))[features].view(4, N_EACH)
    of_finetuned = latent_scaling(crosscoder, held_out.split(512))
    of_base = latent_scaling(crosscoder, held_out.split(512), of_finetuned=False)
    kinds = list(TRUTH)
    assert call_by_decoder_norm(relative[kinds.index("finetuned-only")]) == ["finetuned-only"] * 2
    assert call_by_decoder_norm(relative[kinds.index("base-only")]) == ["base-only"] * 2
    assert call_by_decoder_norm(relative[kinds.index("shared")]) == ["shared"] * 2
    assert call_by_decoder_norm(relative[kinds.index("rescaled")]) == ["between"] * 2
    specific = of_finetuned.is_specific[features].view(4, N_EACH)
    assert specific.all(1).tolist() == [True, False, False, False]
    assert specific.any(1).tolist() == [True, False, False, False]
    base_specific = of_base.is_specific[features].view(4, N_EACH)
    assert base_specific.all(1).tolist() == [False, True, False, False]
    nu = of_finetuned.nu_error[features].view(4, N_EACH)
    torch.testing.assert_close(nu[2], torch.ones(2).double(), atol=0.1, rtol=0)
    torch.testing.assert_close(nu[3], torch.full((2,), 0.35).double(), atol=0.1, rtol=0)
    # Of a well-trained feature the model's own beta is 1.
    own = of_finetuned.beta_error[1][features[[0, 1, 4, 5, 6, 7]]]
    torch.testing.assert_close(own, torch.ones(6).double(), atol=0.1, rtol=0)


def test_l1_shrinks_a_rescaled_feature_to_finetuned_only_and_latent_scaling_finds_it_out(tmp_path):
    config = L1CrosscoderTrainingSAEConfig(d_in=2 * D, d_sae=12, l1_coefficient=0.6)
    crosscoder = to_inference(train(config), tmp_path)
    held_out, directions = planted(4000, seed=5)
    features = matched(crosscoder, directions)
    own, rescaled = features[:N_EACH], features[3 * N_EACH :]
    called = call_by_decoder_norm(relative_decoder_norm(*decoder_halves(crosscoder)))
    assert {called[i] for i in (*own.tolist(), *rescaled.tolist())} == {"finetuned-only"}
    scaling = latent_scaling(crosscoder, held_out.split(512))
    assert scaling.is_specific[own].all()
    assert not scaling.is_specific[rescaled].any()


def by_hand(kind_scale):
    """A crosscoder made of the planted truth, with the decoder norms given."""
    data, directions = planted(3000, seed=2)
    config = CrosscoderSAEConfig(d_in=2 * D, d_sae=8)
    crosscoder = CrosscoderSAE(config)
    scale = torch.tensor(kind_scale)
    truth = torch.tensor([TRUTH[kind] for kind in TRUTH for _ in range(N_EACH)])
    with torch.no_grad():
        crosscoder.W_dec.copy_(
            torch.cat([scale[:, :1] * directions, scale[:, 1:] * directions], -1)
        )
        reader = torch.cat([truth[:, :1] * directions, truth[:, 1:] * directions], -1)
        crosscoder.W_enc.copy_((reader / truth.square().sum(-1, keepdim=True)).T)
    return crosscoder, data


def test_latent_scaling_is_the_least_squares_of_its_definition():
    crosscoder, data = by_hand([[0.3, 1.0]] * 8)
    measured = latent_scaling(crosscoder, data.split(700))
    codes = crosscoder.encode(data).detach().double()
    halves = [h.double() for h in decoder_halves(crosscoder)]
    for j in range(8):
        own = codes[:, j : j + 1] * halves[1][j]
        for m in (0, 1):
            target = data[:, m * D : (m + 1) * D].double() - codes @ halves[m]
            target = target + codes[:, j : j + 1] * halves[m][j]
            beta = (target * own).sum() / own.square().sum()
            torch.testing.assert_close(measured.beta_error[m, j], beta, rtol=1e-4, atol=1e-5)
            beta = (codes @ halves[m] * own).sum() / own.square().sum()
            torch.testing.assert_close(
                measured.beta_reconstruction[m, j], beta, rtol=1e-4, atol=1e-5
            )


def test_features_that_never_fire_are_undefined_and_counted():
    crosscoder, data = by_hand([[1.0, 1.0]] * 8)
    with torch.no_grad():
        crosscoder.b_enc[3] = -100
    measured = latent_scaling(crosscoder, [data])
    assert measured.n_undefined == 1
    assert measured.nu_error.isnan().tolist() == [j == 3 for j in range(8)]
    assert not measured.is_specific[3]


def test_a_constant_bias_is_no_part_of_a_feature():
    crosscoder, data = by_hand([[1.0, 1.0]] * 8)
    before = latent_scaling(crosscoder, [data]).beta_error
    with torch.no_grad():
        crosscoder.b_dec += 3
        crosscoder.b_enc -= 3 * crosscoder.W_enc.sum(0)
    after = latent_scaling(crosscoder, [data + 3]).beta_error
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)


def test_norms_are_compared_in_the_space_of_training():
    crosscoder, _ = by_hand([[1.0, 5.0]] * 8)
    crosscoder.cfg.metadata.diffsae_lens = {"normalization": {"scale": [1.0, 5.0]}}
    relative = relative_decoder_norm(*decoder_halves(crosscoder))
    torch.testing.assert_close(relative, torch.full((8,), 0.5))
    torch.testing.assert_close(decoder_cosine(*decoder_halves(crosscoder)), torch.ones(8))


def test_a_dictionary_of_one_model_has_no_halves(pair):
    with pytest.raises(ValueError, match="must be a crosscoder"):
        decoder_halves(diff_sae(pair))


def test_variance_explained_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score

    crosscoder, data = by_hand([[1.0, 0.9]] * 8)
    crosscoder.cfg.metadata.hook_name = "blocks.0.hook_resid_post.concat"
    measured = reconstruction(crosscoder, data.split(500))
    rebuilt = crosscoder(data).detach()
    expected = {
        "base": (data[:, :D], rebuilt[:, :D]),
        "finetuned": (data[:, D:], rebuilt[:, D:]),
        "diff": (data[:, D:] - data[:, :D], rebuilt[:, D:] - rebuilt[:, :D]),
    }
    for name, (truth, prediction) in expected.items():
        total = ((truth - truth.mean(0)) ** 2).sum()
        r2 = r2_score(truth.numpy(), prediction.numpy(), multioutput="variance_weighted")
        assert measured.variance_explained[name] == pytest.approx(r2, abs=1e-5)
        assert total > 0
    codes = crosscoder.encode(data)
    assert measured.l0 == pytest.approx((codes > 0).float().sum(-1).mean().item())
    assert measured.n_dense == 8
    assert measured.n_dead == 0


def diff_sae(pair, d_sae=40):
    """An untrained dictionary on the pair's difference, with live codes."""
    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=d_sae, apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = f"{HOOKS[1]}.diff"
    return sae


def crosscoder_of(pair):
    torch.manual_seed(0)
    sae = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D_MODEL, d_sae=40))
    sae.cfg.metadata.hook_name = f"{HOOKS[1]}.concat"
    return sae


def exact(sae):
    """Make a dictionary reconstruct its input exactly: +/- each coordinate."""
    d_in = sae.cfg.d_in
    eye = torch.eye(d_in)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_dec.zero_()
        sae.W_enc[:, : 2 * d_in] = torch.cat([eye, -eye], 1)
        sae.W_dec[: 2 * d_in] = torch.cat([eye, -eye], 0)
        sae.b_enc.zero_()
    return sae


def test_an_exact_dictionary_recovers_everything_and_an_empty_one_nothing(pair, tokens):
    torch.manual_seed(0)
    perfect = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D_MODEL, d_sae=4 * D_MODEL))
    perfect.cfg.metadata.hook_name = f"{HOOKS[1]}.concat"
    for dictionary in (exact(diff_sae(pair)), exact(perfect)):
        found = recovered(pair, dictionary, tokens)
        assert found.kl["base put back"] > 1e-4
        assert found.kl_recovered == pytest.approx(1, abs=1e-3)
        assert found.ce_recovered == pytest.approx(1, abs=1e-2)
        with torch.no_grad():
            dictionary.W_dec.zero_()
        found = recovered(pair, dictionary, tokens)
        assert found.kl_recovered == pytest.approx(0, abs=1e-6)
        assert found.ce_recovered == pytest.approx(0, abs=1e-4)


def test_positions_not_trained_on_keep_the_finetuned_activation(pair, tokens):
    dictionary = diff_sae(pair)
    dictionary.cfg.metadata.diffsae_lens = {"skip_positions": tokens.shape[1]}
    found = recovered(pair, dictionary, tokens)
    assert max(found.kl.values()) == pytest.approx(0, abs=1e-6)
    dictionary.cfg.metadata.diffsae_lens = {"skip_positions": tokens.shape[1] - 2}
    assert recovered(pair, dictionary, tokens).kl["base put back"] > 1e-6


def test_cross_entropy_is_the_models_own(pair, tokens):
    found = recovered(pair, diff_sae(pair), tokens)
    for name, model in (("finetuned", pair),):
        loss = model(tokens, return_type="loss")
        assert found.cross_entropy[name] == pytest.approx(loss.item(), rel=1e-4)
    assert found.n_tokens == tokens[:, 1:].numel()


def test_one_row_a_feature_with_examples_in_their_text(pair):
    texts = ["abcdefgh", "stuvwxyz", "aaaaaaaa"]
    tokens = pair.to_tokens(texts, padding_side="right")
    for dictionary in (diff_sae(pair), crosscoder_of(pair)):
        dictionary.cfg.metadata.diffsae_lens = {"skip_positions": 1}
        table = describe_features(pair, dictionary, tokens, n_examples=2, batch_size=2)
        assert len(table) == 40
        hook = dictionary.cfg.metadata.hook_name
        _, cache = pair.run_with_cache(tokens, names_filter=hook)
        codes = dictionary.encode(cache[hook])[:, 1:].detach()
        feature = int(codes.amax((0, 1)).argmax())
        row = table.loc[feature]
        assert row.max_activation == pytest.approx(codes[..., feature].max().item())
        assert row.frequency == pytest.approx((codes[..., feature] > 0).float().mean().item())
        best = max_activating_examples(pair, dictionary, tokens, n_examples=2, context=3)[feature]
        assert len(best) <= 2
        assert best[0].activation == pytest.approx(codes[..., feature].max().item())
        where = int(codes[..., feature].flatten().argmax())
        text, position = texts[where // 7], where % 7 + 1
        assert best[0].token == text[position]
        assert best[0].before == text[max(0, position - 3) : position]
        assert best[0].after == text[position + 1 : position + 4]
        dead = table.is_dead
        assert (table.max_activation[dead] == 0).all()
        assert all(table.examples[dead].map(len) == 0)
    assert {"relative_decoder_norm", "nu_error", "nu_error_base", "called"} <= set(table.columns)


def test_no_difference_no_variance_to_explain(tokenizer):
    base = tiny_llama()
    pair = HookedModelPair(
        boot_bridge(copy.deepcopy(base), tokenizer), boot_bridge(base, tokenizer), HOOKS
    )
    tokens = torch.randint(3, 259, (2, 7))
    found = recovered(pair, diff_sae(pair), tokens)
    assert found.kl["base put back"] == pytest.approx(0, abs=1e-6)


def activations_and_dictionary():
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=24))
    sae.cfg.metadata.hook_name = f"{HOOKS[1]}.diff"
    sae.W_enc.data = torch.randn(D, 24, generator=torch.Generator().manual_seed(0))
    return sae, torch.randn(40, D, generator=torch.Generator().manual_seed(1))


def test_one_tensor_is_one_batch():
    sae, x = activations_and_dictionary()
    whole, listed = reconstruction(sae, x), reconstruction(sae, [x[:30], x[30:]])
    assert whole.n_tokens == listed.n_tokens == 40
    assert whole.l0 == pytest.approx((sae.encode(x) > 0).sum(1).float().mean().item())
    assert whole.l0 == pytest.approx(listed.l0)
    crosscoder = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D, d_sae=24))
    both = torch.cat([x, x], 1)
    one, two = (latent_scaling(crosscoder, b) for b in (both, [both]))
    assert torch.equal(one.beta_error.nan_to_num(), two.beta_error.nan_to_num())


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x[0], ValueError, r"\[token, 16\].* \[16\]"),
        (lambda x: [x[0]], ValueError, r"\[token, 16\].* \[16\]"),
        (lambda x: [x[:, :-1]], ValueError, r"\[token, 16\].* \[40, 15\]"),
        (lambda x: [x.view(4, 10, D)], ValueError, "flatten sequences and positions"),
        (lambda x: [x.int()], ValueError, "int32"),
        (lambda x: [x.masked_fill(x == x[3, 4], torch.nan)], ValueError, "1 of 640 entries"),
        (lambda x: [], ValueError, "no tokens"),
        (lambda x: ["x"], TypeError, "got str"),
    ],
)
def test_batches_of_something_else_are_refused(spoil, error, message):
    sae, x = activations_and_dictionary()
    with pytest.raises(error, match=f"`batches` .*{message}"):
        inspect.unwrap(reconstruction)(sae, spoil(x))


def test_records_that_hold_tensors_are_compared_by_identity():
    sae, x = activations_and_dictionary()
    one, two = reconstruction(sae, x), reconstruction(sae, x)
    assert one == one
    assert one != two
    for record in {*RECORDS, ActivationStatistics}:
        kinds = [str(field.type) for field in dataclasses.fields(record)]
        holds_tensors = any(
            "Callable" not in kind and ("jaxtyping" in kind or "Tensor" in kind) for kind in kinds
        )
        assert not (holds_tensors and record.__dataclass_params__.eq), record
