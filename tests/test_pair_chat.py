"""Conversations where texts are taken, and the last token of what was said."""

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from diffsae_lens.effects._compare import output_perplexity
from diffsae_lens.interventions._run import complete
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.reading._prompts import Positions, Reader, read_prompts
from tests.conftest import HOOKS, plant, tiny_llama

DIFF = f"{HOOKS[1]}.diff"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
USER = [{"role": "user", "content": "say ab"}]
BOTH = [*USER, {"role": "assistant", "content": "ab"}]
ASKED = "<bos>[user]\nsay ab<eos>\n[assistant]\n"
ANSWERED = "<bos>[user]\nsay ab<eos>\n[assistant]\nab<eos>\n"
BEGUN = "<bos>[user]\nsay ab<eos>\n[assistant]\nab"


@pytest.fixture(scope="module")
def chat_pair(tokenizer):
    own = PreTrainedTokenizerFast.from_pretrained(tokenizer.name_or_path)
    own.chat_template = TEMPLATE
    base = tiny_llama()
    return load_pair(base, plant(base), hook_names=HOOKS, tokenizer=own, prepend_bos=True)


def test_a_conversation_is_rendered_once_and_begun_once(chat_pair):
    pair = chat_pair
    read = pair.tokenise([USER, BOTH, "plain"])
    assert read.texts == (ASKED, ANSWERED, "plain")
    bos = pair.tokenizer.bos_token_id
    assert (read.tokens == bos).sum(1).tolist() == [1, 1, 1]
    assert pair.tokenise([USER, BOTH], n_new_tokens=2).texts == (ASKED, BEGUN)
    expected = pair.tokenizer.apply_chat_template(
        USER, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert read.tokens[0, : len(expected)].tolist() == expected
    assert read.lengths[0] == len(expected)


def test_every_way_in_takes_conversations(chat_pair):
    pair = chat_pair
    assert_close(pair(USER), pair(ASKED))
    assert_close(pair([USER, USER]), pair([ASKED, ASKED]))
    assert pair.to_tokens(USER).tolist() == pair.to_tokens(ASKED).tolist()
    assert_close(pair.activations(USER, DIFF)[DIFF], pair.activations(ASKED, DIFF)[DIFF])
    options = {"max_new_tokens": 4}
    assert pair.generate(USER, **options) == pair.generate(ASKED, **options)
    assert pair.generate([BOTH], **options) == pair.generate([BEGUN], **options)
    assert complete(pair, [USER, BOTH], **options) == complete(pair, [ASKED, BEGUN], **options)
    assert complete(pair, [USER], under={"plain": None}, **options)["plain"] == complete(
        pair, [ASKED], **options
    )
    assert_close(
        output_perplexity(pair, [USER, "ab"], ["c", "d"]),
        output_perplexity(pair, [ASKED, "ab"], ["c", "d"]),
    )


@pytest.mark.parametrize(
    ("text", "last", "last_content"),
    [
        (USER, "\n", "b"),
        (BOTH, "\n", "b"),
        ("some text", "t", "t"),
        ("some text<eos>", "<eos>", "t"),
        ([{"role": "user", "content": " padded "}], "\n", "d"),
    ],
)
def test_the_last_content_token_is_before_the_template(chat_pair, text, last, last_content):
    read = chat_pair.tokenise([text])
    n = int(read.of_content[0].nonzero().max())
    tokens = [chat_pair.tokenizer.decode([i]) for i in read.tokens[0].tolist()]
    assert (tokens[-1], tokens[n]) == (last, last_content)
    readers = {
        name: Reader(hook_name=DIFF, positions=Positions(content_only=content))
        for name, content in (("last", False), ("content", True))
    }
    value = chat_pair.activations(read, DIFF)[DIFF][0]
    found = read_prompts(chat_pair, [text, "another one"], readers)
    assert_close(found["last"][0], value[-1])
    assert_close(found["content"][0], value[n])


def test_content_that_the_template_rewrites_has_no_last_token(chat_pair, monkeypatch):
    monkeypatch.setattr(
        chat_pair.tokenizer,
        "chat_template",
        "{% for m in messages %}{{ m['content'] | upper }}!{% endfor %}",
    )
    reader = {"r": Reader(hook_name=DIFF, positions=Positions(content_only=True))}
    with pytest.raises(ValueError, match="no token is left to pool.*last message holds none"):
        read_prompts(chat_pair, [USER], reader)


def test_what_is_no_conversation_is_refused(chat_pair, pair, monkeypatch, no_shape_checks):
    with pytest.raises(TypeError, match="got a single conversation; put it in a list"):
        chat_pair.tokenise(USER)
    with pytest.raises(TypeError, match="got {'messages': .* at 0, which is no message"):
        chat_pair.tokenise([{"messages": USER}])
    with pytest.raises(
        ValueError, match=r"`texts\[0\]` must be messages with a `role` and a `content`"
    ):
        chat_pair.tokenise([[{"role": "user", "text": "a"}]])
    with pytest.raises(ValueError, match=r"a `content`, both texts"):
        chat_pair.tokenise([[{"role": "user", "content": [{"type": "text", "text": "a"}]}]])
    with pytest.raises(ValueError, match=r"no chat template; take the chat model's.*'finetuned'"):
        pair.tokenise([USER])
    with pytest.raises(TypeError, match="got 3 .int. at 1"):
        chat_pair.tokenise([USER, 3])
    monkeypatch.setattr(
        chat_pair.tokenizer, "chat_template", "{{ raise_exception('no system role here') }}"
    )
    with pytest.raises(ValueError, match=r"refuses `texts\[0\]`: no system role here"):
        chat_pair.tokenise([USER])
    assert isinstance(pair.tokenise(("a", "b")).tokens, torch.Tensor)
