import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsae_lens.dictionaries import _sparse as sparse
from diffsae_lens.dictionaries._sparse import (
    batch_topk_codes,
    decode_selected,
    encode_selected,
    feature_major,
    merge_codes,
    topk_codes,
)


def weights(d_in=6, d_sae=70, n_rows=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n_rows, d_in), (d_in, d_sae), (d_sae,), (d_sae, d_in))
    return [torch.randn(s, generator=generator, dtype=torch.double) for s in shapes]


def dense_batch_topk(x, W_enc, b_enc, k, scale):
    """By sorting everything; the formula of Bussmann et al. with a scale on the comparison."""
    pre = x @ W_enc + b_enc
    compared = (pre.relu() * scale).flatten()
    kept = torch.zeros_like(compared)
    kept[compared.argsort(descending=True)[: int(k * len(x))]] = 1
    return pre.relu() * kept.view_as(pre)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK_SIZE", 150)  # two rows of 70 features at a time


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 60), st.integers(0, 100), st.integers(5, 80))
def test_batch_topk_selects_what_sorting_everything_selects(k, seed, d_sae):
    x, W_enc, b_enc, W_dec = weights(d_sae=d_sae, seed=seed)
    scale = W_dec.norm(dim=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "BLOCK_SIZE", 3 * d_sae)
        codes, smallest = batch_topk_codes(x, W_enc, b_enc, k=k, scale=scale)
    expected = dense_batch_topk(x, W_enc, b_enc, k, scale)
    torch.testing.assert_close(codes.to_sparse().to_dense(), expected)
    if len(codes.values):
        torch.testing.assert_close(smallest, (expected * scale)[expected > 0].min())
    else:
        assert smallest == 0


@pytest.mark.parametrize(("d_sae", "k"), [(70, 5), (70, 70), (650, 5), (650, 1)])
def test_topk_selects_the_largest_of_each_row(small_blocks, d_sae, k):
    x, W_enc, b_enc, _ = weights(d_sae=d_sae)
    codes = topk_codes(x, W_enc, b_enc, k=k)
    pre = x @ W_enc + b_enc
    values, indices = pre.topk(k)
    expected = torch.zeros_like(pre).scatter(-1, indices, values)
    torch.testing.assert_close(codes.to_sparse().to_dense(), expected)


@pytest.mark.parametrize("layout", [torch.clone, feature_major])
def test_gradients_are_exact(monkeypatch, layout):
    monkeypatch.setattr(sparse, "BLOCK_SIZE", 36)  # three rows at a time
    inputs = [t.requires_grad_() for t in weights(d_in=3, d_sae=12, n_rows=7)]

    def step(x, W_enc, b_enc, W_dec, *, select):
        codes = select(x, layout(W_enc), b_enc, W_dec)
        return decode_selected(encode_selected(x, layout(W_enc), b_enc, codes), W_dec)

    def per_row(x, W_enc, b_enc, W_dec):
        return topk_codes(x, W_enc, b_enc, k=3)

    def per_batch(x, W_enc, b_enc, W_dec):
        scale = W_dec.detach().norm(dim=-1)
        return batch_topk_codes(x, W_enc, b_enc, k=3, scale=scale)[0]

    for select in (per_row, per_batch):
        assert torch.autograd.gradcheck(lambda *a, s=select: step(*a, select=s), inputs)


def test_gradients_without_mkl_are_the_same(monkeypatch):
    def gradients():
        x, W_enc, b_enc, W_dec = inputs = [t.requires_grad_() for t in weights()]
        codes = encode_selected(x, W_enc, b_enc, topk_codes(x, W_enc, b_enc, k=3))
        return torch.autograd.grad(decode_selected(codes, W_dec).pow(2).sum(), inputs)

    fast = gradients()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    torch.testing.assert_close(fast, gradients())


def test_memory_of_a_gradient_is_used_again_only_when_nobody_holds_it():
    x, W_enc, b_enc, W_dec = weights()
    W_dec, workspace = W_dec.requires_grad_(), sparse.Workspace()
    codes = topk_codes(x, W_enc, b_enc, k=3)

    def backward():
        decode_selected(codes, W_dec, workspace=workspace).sum().backward()
        return W_dec.grad.data_ptr()

    first = backward()
    once = W_dec.grad.clone()
    W_dec.grad.fill_(torch.nan)  # what is left in the memory must not come through
    W_dec.grad = None
    assert backward() == first
    assert workspace.take("W_dec", (70, 6), x).data_ptr() != first  # it is in use
    assert torch.equal(W_dec.grad, once)
    backward()  # a second gradient is added to the one that is held
    torch.testing.assert_close(W_dec.grad, 2 * once)
    held, W_dec.grad = W_dec.grad, None
    before = held.clone()
    backward()
    assert torch.equal(held, before)
    torch.testing.assert_close(W_dec.grad, once)


def test_ties_and_too_few_positive_activations():
    x, W_enc, b_enc, _ = weights()
    tied, _ = batch_topk_codes(x * 0, W_enc, torch.ones_like(b_enc), k=4)
    assert len(tied.values) == 4 * len(x)
    none, smallest = batch_topk_codes(x * 0, W_enc, -torch.ones_like(b_enc), k=4)
    assert len(none.values) == 0
    assert smallest == 0
    out = decode_selected(none, torch.ones(70, 6, dtype=torch.double))
    assert torch.equal(out, torch.zeros_like(x))


def test_merging_is_adding_the_two_parts():
    x, W_enc, b_enc, W_dec = weights()
    parts = [
        encode_selected(x, W, b, topk_codes(x, W, b, k=2))
        for W, b in ((W_enc[:, :30], b_enc[:30]), (W_enc[:, 30:], b_enc[30:]))
    ]
    merged = decode_selected(merge_codes(*parts), W_dec)
    expected = decode_selected(parts[0], W_dec[:30]) + decode_selected(parts[1], W_dec[30:])
    torch.testing.assert_close(merged, expected)
