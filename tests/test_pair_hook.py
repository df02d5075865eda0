"""A virtual hook point's name, and what its view says of the two models."""

import pytest
import torch
from torch.testing import assert_close

from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._views import VIEWS
from tests.conftest import D_MODEL, HOOKS


def test_a_name_is_taken_apart_and_put_together():
    hook = VirtualHook.parse("blocks.18.hook_resid_post.diff")
    assert (hook.site, hook.view, hook.layer) == ("blocks.18.hook_resid_post", "diff", 18)
    assert str(hook) == hook.name == "blocks.18.hook_resid_post.diff"
    assert hook.with_view("concat").name == "blocks.18.hook_resid_post.concat"
    assert hook.spec is VIEWS["diff"]
    assert VirtualHook.parse("embed.hook_out.base").layer is None
    assert {hook: 1}[VirtualHook("blocks.18.hook_resid_post", "diff")] == 1


@pytest.mark.parametrize(
    "name", ["blocks.18.hook_resid_post", "diff", ".diff", "", "blocks.1.hook_z.middle"]
)
def test_a_name_without_a_view_is_refused(name):
    assert not VirtualHook.is_virtual(name)
    with pytest.raises(ValueError, match="must end in a view"):
        VirtualHook.parse(name)


@pytest.mark.parametrize(
    ("site", "view", "message"),
    [
        ("blocks.1.hook_z", "middle", "`view` must be one of base, finetuned, diff, concat"),
        ("", "diff", "`site` must be the models' own hook"),
        ("blocks.1.hook_z.diff", "base", "`site` must be the models' own hook"),
    ],
)
def test_what_makes_no_name_is_refused(site, view, message):
    with pytest.raises(ValueError, match=message):
        VirtualHook(site, view)


@pytest.mark.usefixtures("no_shape_checks")
def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="`name`"):
        VirtualHook.parse(3)


BASE, FINETUNED = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 0.0]])


@pytest.mark.parametrize("name", ["diff", "concat"])
def test_a_view_that_compares_knows_the_difference(name):
    view = VIEWS[name]
    value, diff = view.read(BASE, FINETUNED), FINETUNED - BASE
    assert view.compares
    assert_close(view.difference(value), diff)
    assert_close(view.difference(view.swapped(value)), -diff)
    assert_close(view.swapped(value), view.read(FINETUNED, BASE))
    assert_close(view.write(view.with_difference(value, 3 * diff), BASE), BASE + 3 * diff)
    assert_close(view.write(view.with_more(value, diff), BASE), FINETUNED + diff)


def test_what_is_read_of_the_base_alone_and_written_for_either_model():
    for name, view in VIEWS.items():
        twice = name == "concat"
        assert view.of_base(BASE).shape[-1] == view.n_models * BASE.shape[-1]
        assert_close(view.of_base(BASE), BASE.repeat(1, 1 + twice))
        rows = torch.arange(2.0 * view.n_models)[None]
        assert_close(view.writes(rows, "finetuned"), rows[:, -2:])
        if twice:
            assert_close(view.writes(rows, "base"), rows[:, :2])
        else:
            with pytest.raises(ValueError, match="`side` must be 'finetuned'"):
                view.writes(rows, "base")


@pytest.mark.parametrize("name", ["base", "finetuned"])
def test_one_model_says_nothing_of_a_difference(name):
    view = VIEWS[name]
    assert not view.compares
    for ask in (
        lambda: view.difference(BASE),
        lambda: view.swapped(BASE),
        lambda: view.with_difference(BASE, BASE),
    ):
        with pytest.raises(ValueError, match=r"use `\.diff` or `\.concat`"):
            ask()


# --- reading a pair ---------------------------------------------------------------------------------


def test_activations_are_those_of_the_whole_pass_and_stop_early(pair, tokens):
    names = [f"{HOOKS[0]}.diff", f"{HOOKS[1]}.concat"]
    _, cache = pair.run_with_cache(tokens)
    ran = []
    block = pair.finetuned.blocks[2].register_forward_hook(lambda *_: ran.append(True))
    read = pair.activations(tokens, [names[0], VirtualHook.parse(names[1])])
    block.remove()
    assert not ran
    assert list(read) == names
    for name in names:
        assert torch.equal(read[name], cache[name])
    assert torch.equal(pair.activations(tokens, names[0])[names[0]], cache[names[0]])


def test_texts_are_read_by_the_pairs_policy(pair):
    texts = ["a longer text", "short"]
    name = f"{HOOKS[1]}.diff"
    alone = [pair.activations(text, name)[name][0] for text in texts]
    together = pair.activations(texts, name)[name]
    assert together.shape == (2, len(texts[0]), D_MODEL)
    for row, text, value in zip(together, texts, alone, strict=True):
        assert_close(row[: len(text)], value, atol=1e-5, rtol=1e-4)
    read = pair.tokenise(texts)
    assert torch.equal(pair.activations(read, name)[name], together)
    for bad, message in (
        (([], name), "`texts` is empty"),
        ((["a", ""], name), "is empty"),
        ((["a" * 200], name), "do not fit the model's context"),
        ((texts, []), "`hooks` is empty"),
        ((texts, HOOKS[0]), "is not a hook point of this pair"),
    ):
        with pytest.raises(ValueError, match=message):
            pair.activations(*bad)


def test_tokenised_texts_know_their_characters_and_padding(pair):
    texts = ["abc", "vwxyz", "k"]
    for prepend_bos in (False, True):
        pair.prepend_bos = prepend_bos
        read = pair.tokenise(texts)
        assert torch.equal(read.tokens, pair.to_tokens(texts, padding_side="right"))
        assert read.lengths == [len(text) + prepend_bos for text in texts]
        assert read.positions[2].tolist() == [0, *([1] if prepend_bos else []), *[-1] * 4]
        for text, row, spans, kept in zip(
            texts, read.tokens, read.offsets, read.attended, strict=True
        ):
            found = [
                (pair.tokenizer.decode([token]), text[max(start, 0) : max(end, 0)])
                for token, (start, end), is_kept in zip(row.tolist(), spans, kept, strict=True)
                if is_kept
            ][prepend_bos:]
            assert all(token == part for token, part in found)
        batches = list(read.batches(2, "reading"))
        assert [indices for indices, _ in batches] == [[1, 0], [2]]
        assert batches[1][1].tokens.shape == (1, 1 + prepend_bos)
        assert batches[0][1].texts == ("vwxyz", "abc")
    assert pair.tokenise(["x" * 300], max_tokens=9).tokens.shape == (1, 9)
