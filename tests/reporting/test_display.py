"""Text as it is shown, against Python's own idea of what can be printed."""

import unicodedata
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsae_lens._display import TOKEN_LIMIT, cut, one_line, shown_tokens, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
light = settings(max_examples=60, deadline=None, database=None)

FORMAT = "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060"
ISOLATES = "\u2066\u2067\u2068\u2069\ufeff"
CONTROL = "\x00\x07\x08\x1b\r\x7f\x85\x9b"
OTHER = "\ud800\udfff\ue000\U0010ffff\ufdd0\uffff\u2028\u2029"
IGNORABLE = (
    "\u034f\u115f\u1160\u17b4\u180b\u180f\u3164\ufe00\ufe0f\uffa0\U000e0001\U000e0100\U000e0fff"
)


class TestVisible:
    @pytest.mark.parametrize("c", list(FORMAT + ISOLATES + CONTROL + OTHER + IGNORABLE), ids=ascii)
    def test_what_cannot_be_seen_is_escaped_as_python_writes_it(self, c):
        assert visible(f"a{c}b") == "a" + ascii(c)[1:-1] + "b"

    def test_what_can_be_seen_is_left_alone(self):
        text = 'def f(x):\n\treturn "\\n\\x1b" # é ß 中文 עברית العربية 😀 ↵ e\u0301 \xa0\u3000 $\\f{$ <b>'
        assert visible(text) == text

    def test_of_all_characters_only_those(self):
        for code in chain(range(0x10000), range(0xE0000, 0xE1100), range(0x1F000, 0x1FB00)):
            c = chr(code)
            printed = c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"
            if visible(c) == c:
                assert printed
                assert unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") or c in "\n\t"
            elif printed:  # only what draws nothing, fillers and variation selectors
                assert unicodedata.category(c) in ("Mn", "Lo"), ascii(c)

    @light
    @given(ANY_TEXT)
    def test_it_can_be_written_and_shown_again(self, text):
        shown = visible(text)
        shown.encode("utf-8")
        assert visible(shown) == shown
        assert one_line(shown) == one_line(text)
        assert shown.splitlines() == shown.split("\n")[: len(shown.splitlines())]
        assert len(one_line(text).splitlines()) <= 1

    def test_a_line_break_and_a_tab_stay_only_where_lines_may(self):
        assert visible("a\r\n\tb") == "a\\r\n\tb"
        assert one_line("a\r\n\tb") == "a\\r\\n\\tb"


class TestCut:
    @light
    @given(ANY_TEXT, st.integers(1, 30))
    def test_both_ends_and_how_much_is_left_out(self, text, limit):
        shown = cut(text, limit)
        if len(text) <= limit:
            assert shown == text
            return
        head, _, rest = shown.partition(" [... ")
        assert shown.startswith(text[: limit // 2])
        assert f"[... {len(text) - limit} characters left out ...]" in shown
        assert len(shown) < limit + 50
        if limit > 1 and " [... " not in text:
            assert head == text[: limit // 2]
            assert rest.endswith(text[-(limit - limit // 2) :])

    def test_a_million_characters(self):
        shown = cut("a" * 500_000 + "b" * 500_000)
        assert "[... 980,000 characters left out ...]" in shown
        assert shown[0] == "a"
        assert shown[-1] == "b"
        assert len(shown) < 20_100


class TestTokens:
    @light
    @given(st.lists(ANY_TEXT, max_size=30), st.integers(2, 80))
    def test_each_is_shown_under_its_index_or_counted(self, tokens, limit):
        shown = shown_tokens(tokens, limit=limit)
        indices = [i for i, _ in shown if i is not None]
        assert indices == sorted(set(indices))
        assert all(text == visible(tokens[i]) for i, text in shown if i is not None)
        left = [tokens[i] for i in range(len(tokens)) if i not in indices]
        notes = [text for i, text in shown if i is None]
        n_characters = sum(map(len, left))
        expected = f"[... {len(left)} tokens left out, {n_characters} characters ...]"
        assert notes == ([expected] if left else [])
        assert sum(len(text) + 1 for i, text in shown if i is not None) <= limit

    def test_lines_take_room(self):
        shown = shown_tokens(["\n"] * 100, limit=100, per_line=9)
        assert [i for i, _ in shown] == [0, 1, 2, 3, 4, None, 95, 96, 97, 98, 99]

    def test_one_endless_token(self):
        [(i, text)] = shown_tokens(["x" * 1_000_000])
        assert i == 0
        assert "999,500 characters left out" in text
        assert len(text) < TOKEN_LIMIT + 60
