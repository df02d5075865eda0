"""A base and a chat model: tokenizers that differ, and embeddings for tokens that one of them lacks."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from diffsae_lens.pair._loading import load_pair
from diffsae_lens.pair._vocabulary import padded
from tests.conftest import HOOKS, plant, tiny_llama, with_lora, write_tiny_model
from tests.test_pair_checks import tiny_gpt2

HOOK = HOOKS[1]


def chat_tokenizer(tokenizer, folder, *added):
    tokenizer.save_pretrained(folder)
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    own.add_special_tokens({"additional_special_tokens": list(added)})
    own.chat_template = "{{ messages }}"
    own.save_pretrained(folder)
    return own


def resized(model, n):
    """As before a fine-tuning with added tokens: rows that are trained later."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.resize_token_embeddings(n, mean_resizing=False)
    return model.eval().requires_grad_(False)


def test_an_added_token_in_spare_rows_needs_no_padding(tmp_path, tokenizer, caplog):
    base = tiny_llama(vocab_size=264)
    write_tiny_model(tmp_path / "base", base, tokenizer)
    plant(base).save_pretrained(tmp_path / "chat")
    chat_tokenizer(tokenizer, tmp_path / "chat", "<|user|>")
    with caplog.at_level("INFO", logger="diffsae_lens"):
        pair = load_pair(tmp_path / "base", tmp_path / "chat", hook_names=HOOKS)
    assert pair.to_tokens("<|user|>").tolist() == [[259]]
    assert "differ in 1 tokens, such as '<|user|>'; the fine-tuned model's tokenizer" in caplog.text
    assert "differ in their chat template" in caplog.text
    assert (pair.metadata.n_added_rows, pair.metadata.added_to) == (0, None)
    pair = load_pair(tmp_path / "base", tmp_path / "chat", hook_names=HOOKS, tokenizer="base")
    assert pair.to_tokens("<|user|>").shape == (1, 8)
    assert pair.tokenizer.chat_template is None


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_base_gets_rows_for_tokens_it_does_not_know(tmp_path, tokenizer, caplog, in_memory):
    base = tiny_llama()
    write_tiny_model(tmp_path / "base", base, tokenizer)
    chat = resized(plant(base), 261)
    chat.save_pretrained(tmp_path / "chat")
    own = chat_tokenizer(tokenizer, tmp_path / "chat", "<|user|>", "<|end|>")
    before = {name: (p.shape, p.data_ptr()) for name, p in base.named_parameters()}
    given = (base, chat) if in_memory else (tmp_path / "base", tmp_path / "chat")
    with caplog.at_level("INFO", logger="diffsae_lens"):
        pair = load_pair(*given, hook_names=HOOKS, tokenizer=own if in_memory else None)
    assert {name: (p.shape, p.data_ptr()) for name, p in base.named_parameters()} == before
    assert "has no embeddings for 2 tokens of the other model: it is given means" in caplog.text
    assert (pair.metadata.n_added_rows, pair.metadata.added_to) == (2, "base")
    assert pair.mirrored().metadata.added_to == "finetuned"
    tokens = pair.to_tokens("ab<|user|>c<|end|>")
    assert tokens.tolist()[0][2] == 259
    assert_close(pair(tokens), chat(tokens).logits)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    wide.resize_token_embeddings(261, mean_resizing=False)
    for layer in (wide.get_input_embeddings(), wide.get_output_embeddings()):
        layer.weight.data[259:] = layer.weight.data[:259].mean(0)
    with pair.base_model() as model:
        assert_close(model(tokens), wide(tokens).logits)
        known = tokens[:, :2]
        assert_close(model(known)[..., :259], base(known).logits)


def test_rows_without_tokens_are_padded_on_either_side(tmp_path, tokenizer):
    base = tiny_llama(vocab_size=264)
    write_tiny_model(tmp_path / "base", base, tokenizer)
    write_tiny_model(tmp_path / "full", resized(plant(base), 259), tokenizer)
    pair = load_pair(tmp_path / "base", tmp_path / "full", hook_names=HOOKS)
    assert (pair.metadata.n_added_rows, pair.metadata.added_to) == (5, "finetuned")
    assert pair.cfg.d_vocab == 264


def test_padding_draws_no_numbers_and_takes_a_bias_and_tied_weights():
    model = tiny_gpt2()
    state = torch.random.get_rng_state()
    assert padded(model, 262) == 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert_close(model.lm_head.weight[260], tiny_gpt2().lm_head.weight.mean(0))
    assert padded(model, 262) == 0


def test_an_adapter_that_saved_resized_embeddings_is_right(tmp_path, tokenizer):
    """PEFT writes embeddings whole beside an adapter whose model was resized."""
    base = tiny_llama()
    write_tiny_model(tmp_path / "base", base, tokenizer)
    adapter = with_lora(resized(tiny_llama(), 260), scale=0.5)
    adapter.save_pretrained(tmp_path / "chat", save_embedding_layers=True)
    chat_tokenizer(tokenizer, tmp_path / "chat", "<|user|>")
    before = base.get_input_embeddings().weight.clone()
    for given in (tmp_path / "base", base):
        pair = load_pair(given, tmp_path / "chat", hook_names=HOOKS)
        tokens = pair.to_tokens("ab<|user|>c")
        assert tokens.tolist()[0][2] == 259
        assert_close(pair(tokens), adapter(tokens).logits, atol=1e-5, rtol=1e-4)
        with pair.base_model() as model:
            assert_close(model(tokens[:, :2])[..., :259], base(tokens[:, :2]).logits)
    assert torch.equal(base.get_input_embeddings().weight, before)


def test_a_tokenizer_may_have_more_tokens_than_the_models_can_read(tmp_path, tokenizer):
    base = tiny_llama()
    for name, model in (("base", base), ("full", plant(base))):
        model.save_pretrained(tmp_path / name)
        chat_tokenizer(tokenizer, tmp_path / name, "<image>")
    pair = load_pair(tmp_path / "base", tmp_path / "full", hook_names=HOOKS)
    assert pair.tokenise(["ab"]).lengths == [2]
    with pytest.raises(ValueError, match=r"`texts`\[1\] holds the token '<image>', for which"):
        pair.tokenise(["ab", "ab<image>"])


def test_renamed_special_tokens_have_to_be_asked_for(tmp_path, tokenizer, caplog):
    base = tiny_llama(vocab_size=264)
    for name, added in (("base", "<|reserved|>"), ("chat", "<|user|>")):
        base.save_pretrained(tmp_path / name)
        chat_tokenizer(tokenizer, tmp_path / name, added)
    plant(base).save_pretrained(tmp_path / "chat")
    folders = tmp_path / "base", tmp_path / "chat"
    with pytest.raises(
        ValueError,
        match=r"259, which is '<\|reserved\|>' and '<\|user\|>'; these are special.*'base'",
    ):
        load_pair(*folders, hook_names=HOOKS)
    pair = load_pair(*folders, hook_names=HOOKS, tokenizer="finetuned")
    assert pair.to_tokens("<|user|>").tolist() == [[259]]
    assert "the base has never seen them in that meaning" in caplog.text
    with pytest.raises(ValueError, match="`tokenizer` is 'base', but `base` has none"):
        load_pair(tiny_llama(vocab_size=264), tmp_path / "chat", hook_names=HOOKS, tokenizer="base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`tokenizer`: .*empty holds no tokenizer"):
        load_pair(*folders, hook_names=HOOKS, tokenizer=tmp_path / "empty")
