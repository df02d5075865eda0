"""The gate for input: what each check lets through as it is, and what its message names."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch

from diffsae_lens import _checks
from diffsae_lens._checks import (
    check_callable,
    check_choice,
    check_count,
    check_finite,
    check_folder_name,
    check_indices,
    check_items,
    check_keys,
    check_number,
    check_texts,
    check_tokens,
)
from diffsae_lens._errors import InvalidTypeError
from diffsae_lens._typed import Checked, Count, Natural, Naturals, Number, ShareBelow1, typed

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_of_any_kind_are_counts(value):
    count = check_count("n", value)
    assert count == 3
    assert type(count) is int


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        (True, {}, TypeError, "must be an integer, got True"),
        (np.bool_(True), {}, TypeError, "must be an integer"),
        (torch.tensor(True), {}, TypeError, "must be an integer"),
        (1.5, {}, TypeError, "got 1.5"),
        (1.0, {}, TypeError, r"got 1.0 \(float\)"),
        ("3", {}, TypeError, "got '3'"),
        (None, {}, TypeError, "got None"),
        (torch.tensor([3]), {}, TypeError, "a tensor of"),
        (torch.tensor(3.0), {}, TypeError, "float32"),
        (0, {}, ValueError, "at least 1, got 0"),
        (-1, {}, ValueError, "at least 1, got -1"),
        (-1, {"at_least": 0}, ValueError, "at least 0, got -1"),
        (5, {"at_most": 4}, ValueError, "at most 4, got 5"),
    ],
)
def test_what_is_not_a_count_is_refused(value, options, error, message):
    with pytest.raises(error, match=f"`n` .*{message}"):
        check_count("n", value, **options)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int8(1), torch.tensor(1.0)])
def test_real_numbers_of_any_kind_are_numbers(value):
    number = check_number("x", value, low=0, high=1)
    assert number == 1.0
    assert type(number) is float


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        (True, {}, TypeError, "must be a number, got True"),
        ("1", {}, TypeError, "got '1'"),
        (1j, {}, TypeError, "complex"),
        (torch.tensor([1.0]), {}, TypeError, "a tensor of"),
        (NAN, {}, ValueError, "must be finite, got nan"),
        (INF, {"low": 0}, ValueError, "at least 0, got inf"),
        (0, {"low": 0, "low_open": True}, ValueError, "greater than 0, got 0"),
        (1, {"low": 0, "high": 1, "high_open": True}, ValueError, "at least 0 and less than 1"),
        (1.1, {"high": 1}, ValueError, "at most 1, got 1.1"),
    ],
)
def test_what_is_not_a_number_in_range_is_refused(value, options, error, message):
    with pytest.raises(error, match=f"`x` .*{message}"):
        check_number("x", value, **options)


def test_choices_are_of_their_own_type():
    check_choice("scale", "common", ("common", "none"))
    check_choice("center", False, (True, False))
    for value, choices in (("per model", ("common", "none")), (1, (True, False)), (None, ("a",))):
        with pytest.raises(ValueError, match="`scale` must be one of .*choose"):
            check_choice("scale", value, choices)


@pytest.mark.parametrize("texts", [["a", "b"], ("a", "b"), np.array(["a", "b"]), iter("ab")])
def test_texts_come_back_as_a_list(texts):
    assert check_texts("prompts", texts) == ["a", "b"]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("abc", TypeError, "the single text 'abc'"),
        (b"abc", TypeError, "the single text b'abc'"),
        (["a", 1], TypeError, r"got 1 \(int\) at 1"),
        ([["a"]], TypeError, "at 0"),
        (3, TypeError, "must be a list of texts"),
        ([], ValueError, "is empty"),
    ],
)
def test_what_is_not_a_list_of_texts_is_refused(texts, error, message):
    with pytest.raises(error, match=f"`prompts` .*{message}"):
        check_texts("prompts", texts)
    assert check_texts("prompts", [], allow_empty=True) == []


@pytest.mark.parametrize("name", ["diff-sae-18", "a.b", "layer 3", "größe", "x" * 200])
def test_names_that_become_folders(name, tmp_path):
    check_folder_name("name", name)
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", ".hidden", "a/b", "a\\b", "/", "a\0b", "a\nb", "x" * 201, "ö" * 101,
     "a.partial", "a.lock", "a.damaged", "a.damaged-2"],
)  # fmt: skip
def test_names_that_cannot_become_a_folder_are_refused(name):
    with pytest.raises(ValueError, match="`name` must be"):
        check_folder_name("name", name)


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="`name` must be a string, got 3"):
        check_folder_name("name", 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted(dtype):
    largest = torch.full((4, 5), torch.finfo(dtype).max, dtype=dtype)
    check_finite("weights", largest)  # its sum overflows, it does not
    check_finite("weights", torch.zeros(0, dtype=dtype))
    for bad in (NAN, INF, -INF):
        spoilt = largest.clone()
        spoilt[1, 2] = bad
        with pytest.raises(ValueError, match="`weights` must be finite, got 1 of 20 entries"):
            check_finite("weights", spoilt)
    both = torch.tensor([INF, -INF], dtype=dtype)
    with pytest.raises(ValueError, match="2 of 2"):
        check_finite("weights", both)
    check_finite("weights", torch.arange(3))


PAD, BOS = 2, 0


@pytest.mark.parametrize(
    "tokens",
    [
        [[5, 6, 7], [5, PAD, PAD]],
        [[5, PAD, 6], [5, 6, 7]],
        [[PAD, 6, PAD, 7], [5, 6, 7, 8]],  # it parts documents, so it may begin a row
        [[PAD, PAD, PAD], [5, 6, 7]],
    ],
)
def test_tokens_padded_on_the_right_pass(tokens):
    for dtype in (torch.int32, torch.int64):
        check_tokens("tokens", torch.tensor(tokens, dtype=dtype), d_vocab=9, pad_token_id=PAD)


def test_where_padding_begins_a_text_one_of_it_is_a_token():
    tokens = torch.tensor([[PAD, 6, 7], [PAD, 5, PAD]])
    check_tokens("tokens", tokens, pad_token_id=PAD, bos_token_id=PAD)
    with pytest.raises(ValueError, match="padded on the right"):
        check_tokens("tokens", tokens, pad_token_id=PAD, bos_token_id=BOS)
    with pytest.raises(ValueError, match=r"2 padding tokens \(2\) at the beginning of row 1"):
        left = torch.tensor([[PAD, 5, 6], [PAD, PAD, 7]])
        check_tokens("tokens", left, pad_token_id=PAD, bos_token_id=PAD)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[1, 2]], TypeError, "must be a tensor of token ids"),
        ("text", TypeError, "must be a tensor of token ids"),
        (torch.ones(2, 3), TypeError, "float32"),
        (torch.ones(2, 3, dtype=torch.bool), TypeError, "bool"),
        (torch.ones(3, dtype=torch.long), ValueError, r"\[seq, pos\].* got \[3\]"),
        (torch.ones(0, 3, dtype=torch.long), ValueError, r"got \[0, 3\]"),
        (torch.ones(1, 9, dtype=torch.long), ValueError, "at most 8 tokens per row.* got 9"),
        (torch.full((1, 2), 10), ValueError, "vocabulary of 10, got 10"),
        (torch.full((1, 2), -1), ValueError, "got -1"),
        (torch.tensor([[PAD, 5], [5, 6]]), ValueError, "padded on the right.* row 0"),
    ],
)
def test_what_is_not_tokens_is_refused(tokens, error, message):
    with pytest.raises(error, match=f"`tokens` .*{message}"):
        check_tokens("tokens", tokens, n_ctx=8, d_vocab=10, pad_token_id=PAD, bos_token_id=BOS)


@pytest.mark.parametrize(
    "indices",
    [[3, 0], (3, 0), range(3, -1, -3), np.array([3, 0]), torch.tensor([3, 0]), iter([3, 0]),
     [np.int64(3), torch.tensor(0)]],
)  # fmt: skip
def test_indices_of_any_kind_come_back_as_a_list_of_ints(indices):
    found = check_indices("features", indices, 4)
    assert found == [3, 0]
    assert all(type(index) is int for index in found)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([True, False], TypeError, "got True"),
        (torch.tensor([True, False]), TypeError, "bool"),
        ([1.5], TypeError, "got 1.5"),
        (np.array([1.0]), TypeError, "must hold integers"),
        ("12", TypeError, "must be a list of indices"),
        (3, TypeError, "must be a list of indices"),
        (torch.tensor([[1, 2]]), TypeError, "one dimension"),
        ([-1], ValueError, r"in \[0, 4\), got -1"),
        ([4], ValueError, r"in \[0, 4\), got 4"),
        ([1, 2, 1], ValueError, "repeated, got 1 twice"),
        ([1, np.int64(1)], ValueError, "repeated, got 1 twice"),
    ],
)
def test_what_are_not_indices_is_refused(indices, error, message):
    with pytest.raises(error, match=f"`features` .*{message}"):
        check_indices("features", indices, 4)


def test_repeated_indices_may_be_allowed():
    assert check_indices("features", [1, 1], 4, repeated=True) == [1, 1]


def test_a_function_can_be_called():
    check_callable("judge", len)
    with pytest.raises(TypeError, match="`judge` must be a function, got 'no'"):
        check_callable("judge", "no")


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ("ab", TypeError, "a list of int or float, got 'ab'"),
        ({1: 2}, TypeError, "a list of int or float"),
        (1, TypeError, "a list of int or float, got 1"),
        ([1, "b"], TypeError, "got 'b' .* at 1"),
        ([], ValueError, "is empty"),
    ],
)
def test_records_of_another_type_are_refused(items, error, message):
    assert check_items("samples", (1, 2.0), (int, float)) == [1, 2.0]
    assert check_items("samples", [], int, allow_empty=True) == []
    with pytest.raises(error, match=f"`samples` .*{message}"):
        check_items("samples", items, (int, float))


def test_keywords_that_nothing_reads_are_named():
    check_keys("complete", ["top_k"], ["top_k", "temperature"])
    with pytest.raises(TypeError, match=r"`complete` has no keyword `tempreature`; .*temperature"):
        check_keys("complete", {"tempreature": 1}, ["top_k", "temperature"])


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    n: Count
    share: ShareBelow1 = 0
    layers: Naturals = (0,)
    k: Count | None = None


@typed
def call(n: Count, *, dose: Number = 1, k: Count | None = None, seed: Natural = 0):
    return n, dose, k, seed


@pytest.mark.parametrize("made", [lambda **given: Settings(**{"n": 1, **given}), partial(call, 1)])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": 0}, ValueError, "`k` must be at least 1, got 0"),
        ({"k": "two"}, TypeError, "`k` must be an int.* got 'two'"),
    ],
)
def test_annotations_say_what_values_may_be(made, given, error, message, no_shape_checks):
    with pytest.raises(error, match=message):
        made(**given)


def test_records_check_their_fields(no_shape_checks):
    assert Settings(n=2, share=0.5, layers=(0, 3), k=None).k is None
    for given, error, message in (
        ({"n": 0}, ValueError, "`n` must be at least 1"),
        ({"n": True}, TypeError, "`n` must be an int, got True"),
        ({"n": 1, "share": 1.0}, ValueError, "`share` must be at least 0 and less than 1"),
        ({"n": 1, "layers": (1, 1)}, ValueError, "`layers` must hold each number once"),
        ({"n": 1, "layers": (-1,)}, ValueError, "`layers` must be at least 0"),
        # Types come first, wherever they stand.
        ({"n": 0, "k": 1.5}, TypeError, "`k` must be an int or None"),
    ):
        with pytest.raises(error, match=message):
            Settings(**given)


def test_arguments_that_do_not_fit_name_their_function():
    for given, message in (({}, "missing a required argument: 'n'"), ({"n": 1, "lr": 2}, "'lr'")):
        with pytest.raises(InvalidTypeError, match=f"`call`: .*{message}"):
            call(**given)


def test_functions_get_numbers_of_pythons_own(no_shape_checks):
    found = call(np.int64(3), dose=torch.tensor(0.5), seed=np.uint8(2))
    assert found == (3, 0.5, None, 2)
    assert [type(value) for value in found] == [int, float, type(None), int]
    with pytest.raises(ValueError, match="`seed` must be at least 0"):
        call(1, seed=-1)
    with pytest.raises(ValueError, match="`dose` must be finite"):
        call(1, dose=INF)


def test_messages_stay_short():
    with pytest.raises(TypeError) as raised:
        check_count("n", "x" * 1000)
    assert len(str(raised.value)) < 200
    assert math.isfinite(_checks.MAX_NAME_BYTES)
