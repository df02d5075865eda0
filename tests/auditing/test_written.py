"""What is written and how far a model is from it, against plain transformers, one token at a time."""

import pytest
import torch

from diffsae_lens.auditing._written import (
    N_KEPT,
    Written,
    divergence,
    encode,
    log_probs_of,
    residuals,
    write,
)
from tests.conftest import plant, tiny_llama

TEXTS = ("A longer text than the others.", "Short.", "One of middling length")


@pytest.fixture(scope="module")
def models():
    return tiny_llama().eval(), plant(tiny_llama(), scale=2.0).eval()


@torch.no_grad()
def by_hand(model, prompt, n_new):
    tokens, rows = list(prompt), []
    for _ in range(n_new):
        rows.append(model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1))
        tokens.append(int(rows[-1].argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens[len(prompt) :], torch.stack(rows)


def test_a_batch_writes_what_each_prompt_alone_would(models, tokenizer):
    model, _ = models
    prompts = encode(TEXTS, tokenizer, prepend_bos=False)
    for row, prompt in zip(write(model, tokenizer, prompts, 5), prompts, strict=True):
        tokens, log_probs = by_hand(model, prompt, 5)
        assert list(row.tokens) == tokens
        torch.testing.assert_close(row.log_probs[:, 0], log_probs.max(-1).values, atol=1e-4, rtol=0)


def test_residuals_are_the_divergence_summed_over_a_completion(models, tokenizer):
    writer, other = models
    prompts = encode(TEXTS, tokenizer, prepend_bos=False)
    written = write(writer, tokenizer, prompts, 5)
    found = residuals(other, written)
    for row, prompt, value in zip(written, prompts, found, strict=True):
        tokens = torch.tensor([[*prompt, *row.tokens]])
        with torch.no_grad():
            p, q = (
                m(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (writer, other)
            )
        exact = (p.exp() * (p - q)).sum(-1)
        rest = 1 - p.exp().topk(min(N_KEPT, p.shape[-1])).values.sum(-1)
        assert value <= exact.sum() + 1e-4
        if rest.max() < 1e-4:
            assert value == pytest.approx(exact.sum().item(), abs=1e-3)
    assert found.min() > 0.01
    assert residuals(writer, written).abs().max() < 1e-3


def test_what_is_not_kept_counts_as_one_token():
    p = torch.tensor([0.5, 0.2, 0.2, 0.1])
    q = torch.tensor([0.1, 0.3, 0.5, 0.1])
    row = Written(
        prompt=(0,), tokens=(0,), likely=torch.tensor([[0, 1]]), log_probs=p[None, :2].log()
    )
    merged_p, merged_q = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.1, 0.3, 0.6])
    expected = (merged_p * (merged_p / merged_q).log()).sum()
    found = divergence(q[None].log(), [row])
    torch.testing.assert_close(found, expected[None])
    assert found < (p * (p / q).log()).sum()


def test_log_probs_know_their_rows(models, tokenizer):
    model, _ = models
    written = write(model, tokenizer, encode(TEXTS, tokenizer, prepend_bos=False), 3)
    log_probs, of_row = log_probs_of(model, written)
    assert of_row == [i for i, row in enumerate(written) for _ in row.tokens]
    alone = torch.cat([log_probs_of(model, [row])[0] for row in written])
    torch.testing.assert_close(log_probs, alone, atol=1e-4, rtol=1e-4)


def test_prompts_that_do_not_fit_are_refused(models, tokenizer):
    model, _ = models
    n_ctx = model.config.max_position_embeddings
    with pytest.raises(ValueError, match="do not fit the model's context"):
        write(model, tokenizer, [(1,) * n_ctx], 1)
    with pytest.raises(ValueError, match="no tokens"):
        write(model, tokenizer, [()], 1)
