"""What objects show in a notebook cell."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from sae_lens import SAE

import diffsae_lens as dl
from diffsae_lens._display import Record, facts_html, tokens_html
from diffsae_lens.dictionaries._display import dictionary_html
from tests.conftest import D_MODEL, HOOKS


def test_facts_are_escaped_and_what_is_not_there_is_left_out():
    html = facts_html("<title>", {"<name>": "<script>", "missing": None, "share": 0.123456})
    assert "<script>" not in html
    assert "<name>" not in html
    assert "missing" not in html
    assert "0.1235" in html


def test_a_record_shows_fields_and_properties_but_not_what_repr_leaves_out():
    @dataclass(frozen=True)
    class Found(Record):
        n: int
        values: torch.Tensor = field(repr=False)
        shown: torch.Tensor

        @property
        def twice(self) -> int:
            return 2 * self.n

    html = Found(21, torch.zeros(3), torch.zeros(2, 5))._repr_html_()
    for text in ("Found", ">n<", ">21<", ">twice<", ">42<", "tensor of [2, 5]"):
        assert text in html
    assert "values" not in html


def test_tokens_are_escaped_and_the_strongest_has_the_strongest_ground():
    html = tokens_html(["a", "<b>", '"\n'], [0.0, 4.0, 2.0], peak=4.0)
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    grounds = [part.split(")")[0] for part in html.split("rgb(")[1:]]
    assert [ground.split("/ ")[1] for ground in grounds] == ["0.550", "0.275"]  # none for "a"
    assert "token 1 &#x27;&lt;b&gt;&#x27;: 4.000" in html
    assert "rgb" not in tokens_html(["a"], [0.0], peak=0.0)


HIDDEN = "a\x00b\x1b[8mc\u202ed\u2066e\u200bf\ufeffg\ud800h\ue000i"
SHOWN = r"a\x00b\x1b[8mc\u202ed\u2066e\u200bf\ufeffg\ud800h\ue000i"


def test_what_is_invisible_is_shown_as_an_escape():
    for html in (
        facts_html(HIDDEN, {HIDDEN: HIDDEN, "more": {HIDDEN: [HIDDEN]}}),
        tokens_html([HIDDEN, "b"], [1.0, 0.0], peak=1.0),
    ):
        assert SHOWN in html
        assert all(c.isprintable() or c == "\n" for c in html)
        html.encode("utf-8")
    assert facts_html(HIDDEN, {HIDDEN: HIDDEN}).count(SHOWN) == 3


def test_a_dictionary_of_any_name_shows_itself():
    sae = SAE.from_dict(
        {
            "architecture": "crosscoder", "d_in": 2 * D_MODEL, "d_sae": 7,
            "metadata": {
                "hook_name": f"{HOOKS[0]}.concat", "model_name": f"<script>{HIDDEN}",
            },
        }
    )  # fmt: skip
    html = dictionary_html(sae)
    assert f"&lt;script&gt;{SHOWN}" in html


def test_endless_texts_are_cut_with_a_note():
    html = facts_html("facts", {"long": "x" * 1_000_000})
    assert "[... 980,000 characters left out ...]" in html
    assert len(html) < 21_000
    n = 30_000
    html = tokens_html(["ab"] * n, [float(i) for i in range(n)], peak=1.0)
    assert "token 0 &#x27;ab&#x27;: 0.000" in html
    assert f"token {n - 1} &#x27;ab&#x27;: {n - 1:.3f}" in html
    n_shown = html.count("<span")
    assert (
        f"<i>[... {n - n_shown:,} tokens left out, {2 * (n - n_shown):,} characters ...]</i>"
        in html
    )
    assert len(html) < 2_000_000
    assert len(tokens_html(["x" * 1_000_000], [1.0], peak=1.0)) < 3000
    with pytest.raises(ValueError, match="shorter"):
        tokens_html(["a", "b"], [1.0], peak=1.0)


def test_a_pair_says_what_it_is_made_of(pair, lora_pair):
    for shown in (pair._repr_html_(), repr(pair)):
        assert HOOKS[0] in shown
        assert "diff" in shown
    assert "True" in lora_pair._repr_html_()
    assert "mirrored" in pair.mirrored()._repr_html_()
    assert "mirrored" not in pair._repr_html_()


def test_the_extension_shows_dictionaries_and_can_be_unloaded():
    sae = SAE.from_dict(
        {
            "architecture": "crosscoder", "d_in": 2 * D_MODEL, "d_sae": 7,
            "metadata": {"hook_name": f"{HOOKS[0]}.concat"},
        }
    )  # fmt: skip
    formatter = DisplayFormatter().formatters["text/html"]
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    assert formatter(sae) is None
    dl.load_ipython_extension(shell)
    assert f"{HOOKS[0]}.concat" in formatter(sae)
    dl.unload_ipython_extension(shell)
    assert formatter(sae) is None
    dl.unload_ipython_extension(shell)  # a second time is no error


def test_figures_show_themselves_without_pyplot():
    from diffsae_lens.reporting._style import Figure

    assert Figure()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("features", [[7], [-1], [1, 1]])
def test_features_that_do_not_exist_are_refused(pair, features):
    sae = SAE.from_dict(
        {
            "architecture": "crosscoder", "d_in": 2 * D_MODEL, "d_sae": 7,
            "metadata": {"hook_name": f"{HOOKS[0]}.concat"},
        }
    )  # fmt: skip
    with pytest.raises(ValueError, match="`features` must (hold indices|not be repeated)"):
        dl.token_activations(pair, sae, features, ["text"])


def test_tokens_are_read_as_the_dictionary_encodes_them(pair):
    sae = SAE.from_dict(
        {
            "architecture": "crosscoder", "d_in": 2 * D_MODEL, "d_sae": 7,
            "metadata": {"hook_name": f"{HOOKS[0]}.concat"},
        }
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(2 * D_MODEL, 7, generator=generator)
    texts = ["in 2024", "a longer text, in 2023"]
    read = dl.token_activations(pair, sae, [4, 2], texts)
    for text, tokens, acts in zip(texts, read.tokens, read.activations, strict=True):
        assert "".join(tokens) == text
        _, cache = pair.run_with_cache(pair.to_tokens(text))
        expected = sae.encode(cache[f"{HOOKS[0]}.concat"])[0][:, [4, 2]]
        torch.testing.assert_close(acts, expected)
    frame = read.frame()
    assert frame.shape == (sum(map(len, read.tokens)), 5)
    assert frame["4"].tolist()[: len(read.tokens[0])] == read.activations[0][:, 0].tolist()
    assert "feature 4" in read._repr_html_()
    for bad in ({"features": []}, {"texts": []}, {"texts": "abc"}, {"texts": ["abc", ""]}):
        [name] = bad
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            dl.token_activations(pair, sae, **{"features": [1], "texts": texts, **bad})
