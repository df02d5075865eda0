import pytest
import torch
from sae_lens import SAE, StandardSAEConfig
from torch.testing import assert_close

from diffsae_lens.reading._prompts import (
    Positions,
    Reader,
    check_fits,
    feature_activations,
    read_prompts,
)
from tests.conftest import D_MODEL, HOOKS

DIFF = f"{HOOKS[1]}.diff"
PROMPTS = ["ab", "a longer prompt", "mid one"]


def dictionary(hook_name=DIFF, d_in=D_MODEL, d_sae=24) -> SAE:
    sae = SAE.from_dict({"architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": "float32",
                         "device": "cpu", "metadata": {"hook_name": hook_name}})  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(d_in, d_sae, generator=generator)
    sae.W_dec.data = torch.randn(d_sae, d_in, generator=generator)
    return sae


def alone(pair, text):
    """The difference on one text, `[pos, d_model]`, without batching or padding."""
    _, cache = pair.run_with_cache(pair.to_tokens(text), names_filter=DIFF)
    return cache[DIFF][0]


@pytest.mark.parametrize(
    ("pooling", "reduce"),
    [("mean", lambda x: x.mean(0)), ("max", lambda x: x.amax(0)), ("last", lambda x: x[-1])],
)
def test_pooling_ignores_padding_order_and_the_first_token(pair, pooling, reduce):
    reader = Reader(hook_name=DIFF, positions=Positions(pooling=pooling))
    read = read_prompts(pair, PROMPTS, {"x": reader}, batch_size=2)["x"]
    for text, row in zip(PROMPTS, read, strict=True):
        assert_close(row, reduce(alone(pair, text)[1:]), atol=1e-5, rtol=1e-4)


def test_features_are_encoded_before_they_are_pooled(pair):
    sae = dictionary()
    read = feature_activations(pair, sae, PROMPTS, positions=Positions(pooling="mean"))
    expected = torch.stack([sae.encode(alone(pair, t)[1:]).mean(0) for t in PROMPTS])
    assert_close(read, expected, atol=1e-5, rtol=1e-4)
    pooled_first = torch.stack([sae.encode(alone(pair, t)[1:].mean(0)) for t in PROMPTS])
    assert not torch.allclose(read, pooled_first, atol=1e-3)


def test_a_span_reads_its_own_tokens(pair):
    text = "year 2024 end"
    spans = Positions(pooling="mean", spans=((5, 9),))
    read = read_prompts(pair, [text], {"x": Reader(hook_name=DIFF, positions=spans)})["x"]
    assert_close(read[0], alone(pair, text)[5:9].mean(0), atol=1e-5, rtol=1e-4)


def test_one_pass_serves_many_readers(pair):
    runs = []
    with pair.base_model() as base:
        base.add_hook("blocks.0.hook_resid_post", lambda v, hook: runs.append(1))
    readers = {
        "diff": Reader(hook_name=DIFF),
        "mean": Reader(hook_name=DIFF, positions=Positions(pooling="mean")),
        "base": Reader(hook_name=f"{HOOKS[0]}.base"),
    }
    read = read_prompts(pair, PROMPTS, readers)
    assert runs == [1]
    assert {name: tuple(v.shape) for name, v in read.items()} == dict.fromkeys(
        readers, (3, D_MODEL)
    )


def test_bad_input_is_refused(pair):
    with pytest.raises(ValueError, match="`prompts` is empty"):
        read_prompts(pair, [], {"x": Reader(hook_name=DIFF)})
    with pytest.raises(ValueError, match="is not a hook point"):
        read_prompts(pair, PROMPTS, {"x": Reader(hook_name=HOOKS[0])})
    with pytest.raises(ValueError, match="no token is left to pool of the prompt 'a'"):
        read_prompts(pair, ["long enough", "a"], {"x": Reader(hook_name=DIFF)})
    with pytest.raises(ValueError, match="one span per prompt, got 1 for 3"):
        positions = Positions(spans=((0, 1),))
        read_prompts(pair, PROMPTS, {"x": Reader(hook_name=DIFF, positions=positions)})
    # The tests' type checker would refuse it first; a user has none.
    positions = Positions()
    object.__setattr__(positions, "pooling", "median")
    with pytest.raises(ValueError, match="`pooling` must be one of"):
        positions.__post_init__()


def test_a_dictionary_must_fit_the_pair(pair):
    assert check_fits(pair, dictionary()).name == DIFF
    with pytest.raises(ValueError, match="is not a hook point of this pair"):
        check_fits(pair, dictionary("blocks.9.hook_resid_post.diff"))
    with pytest.raises(ValueError, match="8 wide"):
        check_fits(pair, dictionary(d_in=8))
    nameless = SAE.from_dict(StandardSAEConfig(d_in=D_MODEL, d_sae=4).to_dict())
    with pytest.raises(ValueError, match="names no hook point"):
        check_fits(pair, nameless)


def test_a_keyword_that_positions_do_not_have_is_refused_with_those_they_have():
    with pytest.raises(TypeError, match=r"`Positions` has no keyword `last`; it takes .* pooling"):
        Positions(last=True)
