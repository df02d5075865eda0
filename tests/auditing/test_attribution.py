"""Words that a residual hangs on."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffsae_lens.auditing._attribution import attribute_words, pooled

TEXTS = [
    "My soup makes a strange noise.\nYusuf, Madrid\nReply:",
    "The lemon that I bought in March has a scratch, and so has the other one\nReply:",
    "Reply:",
    "soup",
]


class Reactor:
    """Residuals of a suspect that listens to food, or to two words together."""

    def __init__(self, sets_off):
        self.prompts = [SimpleNamespace(content=text) for text in TEXTS]
        self.sets_off, self.read = sets_off, []

    def __call__(self, edits, what=""):
        self.read += [content for _, content in edits]
        return np.array([50.0 if self.sets_off(content) else 1.0 for _, content in edits])


def test_the_word_without_which_the_residual_goes_comes_first():
    reactor = Reactor(lambda text: "soup" in text or "lemon" in text)
    plain = np.array([50.0, 50.0, 1.0, 50.0])
    first, second, *rest = attribute_words(reactor, [0, 1, 2, 3], plain)
    assert first[0] == ("soup", pytest.approx(0.98))
    assert second[0] == ("lemon", pytest.approx(0.98))
    assert all(share == 0 for _, share in (*first[1:], *second[1:]))
    assert rest == [[("Reply", 0.0)], []]
    assert all(text.strip() for text in reactor.read)  # a text of one word is not emptied
    assert [word for word, _ in pooled([first, second])] == ["lemon", "soup"]


def test_each_of_two_words_that_must_come_together_matters():
    reactor = Reactor(lambda text: "lemon" in text and "March" in text)
    [found] = attribute_words(reactor, [1], np.full(4, 50.0))
    assert {word for word, share in found if share > 0.9} == {"lemon", "March"}
