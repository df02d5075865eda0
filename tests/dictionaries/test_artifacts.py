import json
import warnings
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from diffsae_lens.dictionaries import CrosscoderSAE, CrosscoderSAEConfig
from diffsae_lens.dictionaries._fits import check_fits
from diffsae_lens.dictionaries._load import load
from diffsae_lens.dictionaries._publish import export_as_jumprelu, model_card, upload
from diffsae_lens.pair._metadata import PairMetadata
from tests.conftest import D_MODEL, HOOKS


def metadata(pair):
    return {
        "base": pair.metadata.base,
        "finetuned": pair.metadata.finetuned,
        "base_revision": None,
        "finetuned_revision": None,
    }


@pytest.fixture
def crosscoder(pair):
    torch.manual_seed(0)
    sae = CrosscoderSAE(CrosscoderSAEConfig(d_in=2 * D_MODEL, d_sae=24))
    sae.cfg.metadata.hook_name = f"{HOOKS[1]}.concat"
    sae.cfg.metadata.diffsae_lens = {"pair": metadata(pair), "k": 3}
    return sae


def test_what_is_saved_is_loaded_and_fits_its_pair(crosscoder, pair, tmp_path):
    crosscoder.save_model(tmp_path)
    again = load(tmp_path, pair=pair)
    x = torch.randn(3, 2 * D_MODEL)
    assert torch.equal(again(x), crosscoder(x))


def test_another_pair_is_refused_with_both_sides_named(crosscoder, pair):
    pair.metadata = PairMetadata(base=pair.metadata.base, finetuned="someone/else")
    with pytest.raises(ValueError, match=r"trained on .*'someone/else'"):
        check_fits(pair, crosscoder)


def test_another_revision_is_a_warning(crosscoder, pair):
    pair.metadata = replace(pair.metadata, finetuned_revision="abc")
    with pytest.warns(UserWarning, match="revision None .* has abc"):
        check_fits(pair, crosscoder)


def test_a_moved_folder_is_the_same_model(crosscoder, pair):
    crosscoder.cfg.metadata.diffsae_lens["pair"]["base"] = f"/elsewhere/{pair.metadata.base}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_fits(pair, crosscoder).name == f"{HOOKS[1]}.concat"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hook_name": None}, "names no hook point"),
        ({"hook_name": "blocks.7.hook_resid_post.concat"}, "is not a hook point of this pair"),
        ({"hook_name": f"{HOOKS[1]}.diff"}, "trained on another model"),
    ],
)
def test_another_hook_or_width_is_refused(crosscoder, pair, change, message):
    crosscoder.cfg.metadata.hook_name = change["hook_name"]
    with pytest.raises(ValueError, match=message):
        check_fits(pair, crosscoder)


def test_pickles_unknown_classes_and_checkpoints_are_refused(crosscoder, tmp_path):
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.pt.*pickles"):
        load(tmp_path / "pickle")
    crosscoder.save_model(tmp_path / "unknown")
    config = json.loads((tmp_path / "unknown" / "cfg.json").read_text())
    for architecture, message in (
        ("theirs", r"'theirs', which is not registered.*import"),
        ("batchtopk_crosscoder", "training checkpoint"),
    ):
        (tmp_path / "unknown" / "cfg.json").write_text(
            json.dumps(config | {"architecture": architecture})
        )
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "unknown")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").touch()
    with pytest.raises(FileNotFoundError, match=r"there is \[\]; what another .* `load_foreign`"):
        load(tmp_path / "empty")
    crosscoder.save_model(tmp_path / "run" / "mine")
    with pytest.raises(FileNotFoundError, match=r"name one of \['mine'\]"):
        load(tmp_path / "run")


def test_the_export_needs_no_plugin(crosscoder, tmp_path):
    with torch.no_grad():
        crosscoder.threshold += 0.2
        crosscoder.b_enc += torch.randn(24)
        crosscoder.b_dec += torch.randn(2 * D_MODEL)
    export_as_jumprelu(crosscoder, tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    assert type(stock) is JumpReLUSAE
    assert stock.cfg.metadata.hook_name == f"{HOOKS[1]}.concat"
    x = torch.randn(5, 2 * D_MODEL)
    assert torch.equal(stock(x), crosscoder(x))
    with pytest.raises(ValueError, match="must have JumpReLU codes"):
        export_as_jumprelu(TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2)), tmp_path)


def test_an_upload_needs_dictionaries(tmp_path):
    with pytest.raises(ValueError, match="empty"):
        upload({}, "me/mine", license="mit")
    with pytest.raises(FileNotFoundError):
        upload({"x": tmp_path}, "me/mine", license="mit")
    with pytest.raises(ValueError, match="`configs` is empty"):
        model_card("me/mine", {}, license="mit")


def test_a_repository_goes_through_sae_lens(monkeypatch):
    asked = []
    stock = JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8))
    monkeypatch.setattr(SAE, "from_pretrained", lambda *a, **k: asked.append((a, k)) or stock)
    assert load("me/mine", sae_id="layer-1") is stock
    assert asked == [(("me/mine", "layer-1"), {"device": "cpu"})]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder with `runs` in it, and no way to the hub."""

    def ask(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(SAE, "from_pretrained", ask)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/typo", r"folder runs/typo does not exist; runs holds the folders \['demo'\]"),
        ("./typo", "does not exist"),
        ("../typo", "does not exist"),
        ("~/typo", "home/typo does not exist"),
        ("/typo/of/mine", "/typo/of/mine does not exist"),
        ("typo", "folder typo does not exist"),
        ("a/b/c", "does not exist"),
        ("runs/demo/model.safetensors", "does not exist"),
        ("owner/name", "neither|is not a folder here, and as a repository .*no network"),
    ],
)
def test_what_is_not_there_is_said_without_asking_the_hub_for_a_path(elsewhere, path, message):
    with pytest.raises(FileNotFoundError, match=message):
        load(path)


def test_the_home_folder_is_found(elsewhere, crosscoder):
    crosscoder.save_model(elsewhere / "home" / "sae")
    assert isinstance(load("~/sae"), CrosscoderSAE)
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        load("home/sae/cfg.json")


def test_a_path_is_a_path():
    for bad in ("", None, 3):
        with pytest.raises(Exception, match="path_or_repo"):
            load(bad)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_dec", "threshold"])
def test_weights_that_are_not_finite_are_refused(crosscoder, tmp_path, name):
    with torch.no_grad():
        getattr(crosscoder, name).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=f"`dictionary.{name}` must be finite, got 1 of"):
        export_as_jumprelu(crosscoder, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    crosscoder.save_model(tmp_path)
    with pytest.raises(ValueError, match=f"`dictionary.{name}` must be finite, got 1 of"):
        load(tmp_path)


def test_damaged_files_are_named(crosscoder, tmp_path):
    crosscoder.save_model(tmp_path)
    weights, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged.*again"):
        load(tmp_path)
    weights.write_bytes(whole)
    config.write_text(config.read_text()[:20])
    with pytest.raises(ValueError, match=r"cfg.json"):
        load(tmp_path)
