"""Whether a dictionary is a pair's: by the models' weights first, by names where there is nothing else."""

import copy
import re
import warnings
from dataclasses import asdict

import pytest
import torch
from sae_lens import SAE, Transcoder, TranscoderConfig

from diffsae_lens.dictionaries._fits import check_features, check_fits
from diffsae_lens.dictionaries._load import load
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from tests.conftest import D_MODEL, HOOKS, plant, tiny_llama
from tests.interventions.test_features import dictionary

HOOK = f"{HOOKS[1]}.diff"


def trained_on(pair, **changes) -> SAE:
    """A dictionary whose record names the pair, but for some changes."""
    sae = dictionary()
    sae.cfg.metadata.diffsae_lens = {"pair": asdict(pair.metadata) | changes}
    return sae


def another(tokenizer, *, seed=0, planted=1, dtype=torch.float32) -> HookedModelPair:
    base = tiny_llama(seed=seed)
    tuned = plant(base, seed=planted)
    bridges = [boot_bridge(copy.deepcopy(m).to(dtype), tokenizer) for m in (base, tuned)]
    return HookedModelPair(*bridges, HOOKS)


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("silent")
def test_a_renamed_folder_holds_the_same_model(pair, tokenizer):
    sae = trained_on(pair, base="/elsewhere/other", finetuned="run-7", base_revision="abc")
    assert check_fits(pair, sae).name == HOOK
    assert check_fits(another(tokenizer), trained_on(pair)).name == HOOK


def test_another_model_of_the_same_name_is_refused(pair, tokenizer):
    for other, side in (
        (another(tokenizer, planted=5), "finetuned"),
        (another(tokenizer, seed=9), "base"),
    ):
        assert other.metadata.base == pair.metadata.base
        with pytest.raises(
            ValueError, match=f"the {side} models are not the same .*weights differ"
        ):
            check_fits(other, trained_on(pair))


def test_names_count_where_the_record_has_no_fingerprint(pair):
    old = {"base_fingerprint": None, "finetuned_fingerprint": None}
    assert check_fits(pair, trained_on(pair, **old)).name == HOOK
    with pytest.raises(ValueError, match="'someone/else'.*names differ"):
        check_fits(pair, trained_on(pair, finetuned="someone/else", **old))
    with pytest.warns(UserWarning, match="revision abc"):
        check_fits(pair, trained_on(pair, base_revision="abc", **old))


def test_another_precision_is_a_warning(pair, tokenizer):
    half = another(tokenizer, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="models in float32, the pair's are in bfloat16"):
        assert check_fits(half, trained_on(pair)).name == HOOK


@pytest.mark.parametrize(("trained", "used"), [(True, False), (False, True)])
def test_another_policy_on_the_first_token_is_a_warning(pair, trained, used):
    sae = trained_on(pair)
    sae.cfg.metadata.prepend_bos = trained
    pair.prepend_bos = used
    with pytest.warns(
        UserWarning, match=f"`prepend_bos={trained}`, the pair has `prepend_bos={used}`"
    ):
        check_fits(pair, sae)
    pair.prepend_bos = trained
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fits(pair, sae)


def test_a_transcoder_is_refused(pair, tmp_path):
    transcoder = Transcoder(
        TranscoderConfig(d_in=D_MODEL, d_out=D_MODEL, d_sae=24, apply_b_dec_to_input=False)
    )
    transcoder.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match="must write where it reads, got the transcoder"):
        check_fits(pair, transcoder)
    transcoder.save_model(tmp_path)
    with pytest.raises(ValueError, match="must write where it reads"):
        load(tmp_path, pair=pair)
    sae = dictionary()
    sae.cfg.metadata.hook_name_out = f"{HOOKS[0]}.diff"
    with pytest.raises(ValueError, match="must write where it reads"):
        check_fits(pair, sae)


def test_a_mirrored_pair_is_refused(pair):
    with pytest.raises(ValueError, match="mirrored"):
        check_fits(pair.mirrored(), dictionary())


def test_features_are_indices_of_the_dictionary():
    sae = dictionary()
    assert check_features(sae, torch.tensor([3, 1])) == [3, 1]
    for features, message in (([24], "[0, 24)"), ([-1], "[0, 24)"), ([1, 1], "repeated")):
        with pytest.raises(ValueError, match=f"`features` .*{re.escape(message)}"):
            check_features(sae, features)
    with pytest.raises(ValueError, match="`order` must hold at least one feature"):
        check_features(sae, [], name="order", allow_empty=False)
