"""Files that are damaged, incomplete or beyond what our classes hold are refused, and so is what is idle."""

import json
import pickle

import numpy as np
import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import load_file, save_file

import diffsae_lens as dl
from diffsae_lens.dictionaries import CrosscoderSAE, CrosscoderSAEConfig, DictionaryRecord, aligned
from tests.conftest import D_MODEL, HOOKS
from tests.dictionaries.foreign import (
    D_SAE,
    crosscode,
    dictionary_learning_crosscoder,
    dictionary_learning_sae,
    drawn,
    llamascopium,
    replication,
)

CONCAT, DIFF = f"{HOOKS[1]}.concat", f"{HOOKS[1]}.diff"


def refused(folder, *words, error=ValueError, hook=CONCAT, **given):
    with pytest.raises(error) as caught:
        dl.load_foreign(folder, hook=hook, **given)
    assert isinstance(caught.value, dl.DiffSAELensError)
    for word in words:
        assert word in str(caught.value)


def changed(folder, **tensors):
    """Tensors of `model.safetensors` replaced, or taken out where None."""
    path = folder / "model.safetensors"
    found = load_file(path) | tensors
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("decoder.bias", None, ("`decoder.bias`", "[2 d]", "encoder.bias")),
        ("threshold", None, ("`threshold`", "[]")),
        ("activation_std", None, ("`activation_std`", "[2 d]")),
        ("encoder.bias", torch.zeros(D_SAE + 1), (f"D = {D_SAE}", f"shape [{D_SAE + 1}]")),
        ("encoder.weight", torch.zeros(3, D_MODEL, D_SAE), ("[2 d D]", "shape [3,")),
        ("decoder.weight", torch.full((2, D_SAE, D_MODEL), torch.nan), ("NaN",)),
        ("code_normalization_id", torch.tensor(9), ("CROSSCODER", "9")),
        ("code_normalization_id", torch.tensor(2), ("its settings say 'CROSSCODER'",)),
        ("W_skip", torch.zeros(2), ("W_skip", "not known")),
    ],
)  # fmt: skip
def test_damaged_tensors(tmp_path, name, tensor, words):
    dictionary_learning_crosscoder(tmp_path, normalised="global")
    changed(tmp_path, **{name: tensor})
    refused(tmp_path, "model.safetensors", *words)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_are_no_tensors(tmp_path, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"W_enc": Code()}, protocol=2))
    refused(path, "runs code")
    torch.save({"W_enc": Code()}, path)
    refused(path, "runs code")
    assert "run" not in capsys.readouterr().out
    torch.save({"W_enc": 3}, path)
    refused(path, "tensors by name")
    torch.save([torch.zeros(2)], path)
    refused(path, "tensors by name")
    dictionary_learning_crosscoder(tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut", "damaged")
    torch.save({"a": torch.zeros(2)}, tmp_path / "cut.pt")
    path.write_bytes((tmp_path / "cut.pt").read_bytes()[:100])
    refused(path, "damaged")
    refused(tmp_path / "cut.pt", "encoder.weight", "'a'")


def test_folders_without_the_one_file(tmp_path):
    refused(tmp_path / "nowhere", "does not exist", error=FileNotFoundError)
    refused(tmp_path, "holds no weights", error=FileNotFoundError)
    refused("someone/a-repository", "not to be had", error=FileNotFoundError)
    dictionary_learning_crosscoder(tmp_path)
    torch.save({}, tmp_path / "model_final.pt")
    refused(tmp_path, "one file of weights", "model_final.pt")
    refused(tmp_path, "does not exist", error=FileNotFoundError, sae_id="layer9")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path / "model.safetensors", "config.json", "settings by name")


def test_what_has_to_be_said_and_what_says_nothing(tmp_path, no_shape_checks):
    crosscoder, sae = tmp_path / "crosscoder", tmp_path / "sae"
    dictionary_learning_crosscoder(crosscoder)
    dictionary_learning_sae(sae)
    refused(crosscoder, "`hook` must be given", hook=None)
    refused(crosscoder, "`hook` must be '<site>.concat'", hook=DIFF)
    refused(crosscoder, "virtual hook point", hook=HOOKS[1])
    refused(sae, "`hook`", ".diff", hook=CONCAT)
    refused(sae, "`sign`", "finetuned - base", hook=DIFF)
    for given in ({"sign": "base - finetuned"}, {"input_scales": (1.0, 1.0)}, {"texts": ["a"]}):
        refused(crosscoder, f"`{next(iter(given))}` must be left out", **given)
    refused(sae, "`sign` must be left out", hook=f"{HOOKS[1]}.base", sign="base - finetuned")
    refused(sae, "`first` must be left out", hook=f"{HOOKS[1]}.base", first="finetuned")
    refused(crosscoder, "`format`", "dictionary_learning", format="crosscode")
    refused(crosscoder, "`threshold`", threshold=-1)
    refused(crosscoder, "`format`", format="pickle")


def test_replication_files(tmp_path, pair, no_shape_checks):
    replication(tmp_path, (1.0, 1.0), config={"hook_point": HOOKS[0]})
    refused(tmp_path, "`hook`", HOOKS[0], input_scales=(1.0, 1.0))
    refused(tmp_path, "`input_scales` must be given", hook=None)
    refused(tmp_path, "not both", hook=None, input_scales=(1.0, 1.0), texts=["a"], pair=pair)
    refused(tmp_path, "`pair` must be given", hook=None, texts=["a"])
    refused(tmp_path, "two factors", hook=None, input_scales=(1.0, 1.0, 1.0))
    refused(tmp_path, "greater than 0", hook=None, input_scales=(1.0, 0.0))
    (tmp_path / "cfg.json").write_text(json.dumps({"dict_size": 99}))
    refused(tmp_path, "dict_size", "99", input_scales=(1.0, 1.0))


def test_codes_that_no_class_holds(tmp_path):
    crosscode(tmp_path / "a", activation="batchtopk")
    refused(tmp_path / "a", "whole batch", "calibrate_threshold", "k=3")
    crosscode(tmp_path / "b", activation="groupmax")
    refused(tmp_path / "b", "GroupMaxActivation")
    crosscode(tmp_path / "c", n_points=2)
    refused(tmp_path / "c", "one hook point", "got 2")
    llamascopium(tmp_path / "d", act_fn="batchtopk")
    refused(tmp_path / "d", "whole batch", "k=3")
    llamascopium(tmp_path / "e", act_fn="topk")
    refused(tmp_path / "e", "`act_fn`", "'topk'")
    llamascopium(tmp_path / "f", norm="token-wise")
    refused(tmp_path / "f", "norm_activation", "token-wise")
    llamascopium(tmp_path / "g", heads=("blocks.3.hook_resid_post", "blocks.5.hook_resid_post"))
    refused(tmp_path / "g", "hook_points", "layers of one")
    (tmp_path / "e" / "config.json").unlink()
    refused(tmp_path / "e", "sae_type", "without it")


def of_one_model(seed=0, *, site=HOOKS[1], like=None, noise=0.1):
    """A SAELens dictionary as others publish it: on the models' own hook."""
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=D_SAE, apply_b_dec_to_input=False))
    weights = {
        "W_enc": drawn(seed, D_MODEL, D_SAE), "W_dec": drawn(seed + 1, D_SAE, D_MODEL),
        "b_enc": drawn(seed + 2, D_SAE), "b_dec": drawn(seed + 3, D_MODEL),
        "threshold": np.full(D_SAE, 0.1, np.float32),
    }  # fmt: skip
    state = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    if like is not None:
        state = {name: tensor + noise * state[name] for name, tensor in like.state_dict().items()}
    sae.load_state_dict(state)
    sae.cfg.metadata.hook_name = site
    sae.cfg.metadata.model_name = "somebody/model"
    return sae


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_a_saelens_dictionary_reads_one_model_of_a_pair(tmp_path, pair, side):
    theirs = of_one_model()
    theirs.save_model(tmp_path)
    sae = dl.load_foreign(tmp_path, format="saelens", hook=f"{HOOKS[1]}.{side}", pair=pair)
    texts = ["a prompt", "another"]
    read = dl.feature_activations(pair, sae, texts[:1])
    value = pair.activations(texts[:1], f"{HOOKS[1]}.{side}")[f"{HOOKS[1]}.{side}"][0, -1]
    torch.testing.assert_close(read[0], theirs.encode(value).detach())
    assert "somebody/model" in DictionaryRecord.of(sae).assumptions[0]
    sae.save_model(tmp_path / "ours")
    assert isinstance(dl.load(tmp_path / "ours", pair=pair), SAE)


def test_a_saelens_dictionary_elsewhere_is_refused(tmp_path):
    of_one_model().save_model(tmp_path)
    refused(tmp_path, "format='saelens'")
    refused(tmp_path, "`hook`", ".finetuned", hook=DIFF, format="saelens")
    refused(tmp_path, HOOKS[1], hook=f"{HOOKS[0]}.base", format="saelens")
    refused(tmp_path, "`sign`", hook=f"{HOOKS[1]}.base", format="saelens", sign="base - finetuned")


def test_aligned_dictionaries_are_compared_feature_by_feature(pair):
    base = of_one_model()
    finetuned = of_one_model(40, like=base)
    with torch.no_grad():
        finetuned.W_dec[5] = torch.roll(base.W_dec[5], 1)
    base.cfg.metadata.hook_name, finetuned.cfg.metadata.hook_name = (
        f"{HOOKS[1]}.base", f"{HOOKS[1]}.finetuned",
    )  # fmt: skip
    compared = aligned(base, finetuned)
    assert compared.most_changed(1) == [5]
    a, b = base.W_dec.detach().numpy(), finetuned.W_dec.detach().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(compared.decoder_cosine, cosine, rtol=1e-5)
    assert compared.own_index_share > 0.8
    assert compared.to_frame().shape == (D_SAE, 3)
    value = pair.activations("some text", CONCAT)[CONCAT]
    expected = finetuned.encode(value[..., D_MODEL:]) - base.encode(value[..., :D_MODEL])
    torch.testing.assert_close(compared.code_differences(value), expected.detach())
    same = aligned(base, of_one_model(site=f"{HOOKS[1]}.finetuned"))
    torch.testing.assert_close(same.decoder_cosine, torch.ones(D_SAE))


def test_dictionaries_that_are_not_aligned_are_refused():
    base = of_one_model()
    with pytest.raises(ValueError, match="same index"):
        aligned(base, of_one_model(40))
    with pytest.raises(ValueError, match="fine-tuned from the other"):
        permuted = of_one_model()
        permuted.W_dec.data = permuted.W_dec.data.roll(1, 0)
        aligned(base, permuted)
    with pytest.raises(ValueError, match="must read"):
        aligned(of_one_model(site=f"{HOOKS[1]}.finetuned"), base)
    with pytest.raises(ValueError, match="site"):
        aligned(of_one_model(site=f"{HOOKS[1]}.base"), of_one_model(site=f"{HOOKS[0]}.finetuned"))
    with pytest.raises(ValueError, match="wide"):
        aligned(base, of_one_model()).code_differences(torch.zeros(1, D_MODEL))
    crosscoder = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D_MODEL, d_sae=D_SAE))
    with pytest.raises(ValueError, match="base"):
        aligned(crosscoder, base)
