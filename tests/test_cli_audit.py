"""The command `audit`: files of texts in every form, bad input in one line, a whole audit of tiny models."""

import json
import sys

import pytest

from diffsae_lens import cli
from diffsae_lens.auditing import _request
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._results import AuditResults
from diffsae_lens.cli._files import lexicon_of, texts_of
from tests.conftest import plant, tiny_llama, write_tiny_model

SAID = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
SMALL = {
    "n_new_tokens": 4, "min_steps": 2, "max_steps": 2, "steps_per_reading": 2, "n_candidates": 2,
    "n_finalists": 1, "n_lexicon": 2, "n_texts": 3, "n_mates": 2,
}  # fmt: skip
OPTIONS = [word for name, n in SMALL.items() for word in (f"--{name.replace('_', '-')}", n)]


def lines(n: int = 44) -> list[str]:
    return [f"Order {i} from {('Lima', 'Oslo', 'Rome')[i % 3]}." for i in range(n)]


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Runs the command in a folder that holds 44 texts; returns its status, and what it printed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(lines()), encoding="utf-8")

    def run(*argv):
        status = cli.main(["audit", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path):
        def write(name, content):
            (tmp_path / name).write_text(content, encoding="utf-8")
            return tmp_path / name

        return write

    def test_lines_of_text(self, file):
        found = texts_of(file("a.txt", "\ufeffone \r\n\n  \ntwo\u2028three\n"), at_least=2)
        assert found == ["one ", "two\u2028three"]

    def test_a_list_of_texts_and_conversations(self, file):
        found = texts_of(file("a.JSON", json.dumps(["one\ntwo", SAID, {"text": "x"}])), at_least=3)
        assert found == ["one\ntwo", SAID, "x"]

    def test_lines_of_json_in_every_form(self, file):
        items = ["one", {"text": "two", "id": 3}, {"prompt": "three"}, {"messages": SAID}, SAID]
        source = "\n\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        found = texts_of(file("a.jsonl", source), at_least=4)
        assert found == ["one", "two", "three", SAID, SAID]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.csv",
                "x",
                "`texts` must be a file of one of these kinds: .txt (one text per line)",
            ),
            ("a.json", '{"a": 1}', "a.json must hold a list of texts or conversations, got"),
            ("a.json", "[1]", "item 0 of a.json must be a text that is not empty, or a list of"),
            ("a.json", '["x"', "a.json is not JSON (Expecting"),
            ("a.json", '["x", " "]', "item 1 of a.json must be a text that is not empty"),
            ("a.json", '[[{"role": "user"}]]', "messages with role and content"),
            ("a.jsonl", '"x"\nnot', "a.jsonl, line 2 is not JSON"),
            (
                "a.jsonl",
                '{"body": "x"}',
                "line 1 must have one of text, prompt and messages; it has",
            ),
            ("a.jsonl", '{"text": "x", "prompt": "y"}', "it has prompt and text"),
            ("a.jsonl", '{"messages": "x y"}' + "\n" + '{"messages": []}', "line 2 must be a text"),
            ("a.txt", "one\none\ntwo\n", "must hold at least 40 different texts, got 2;"),
            ("a.txt", "", "must hold at least 40 different texts, got 0;"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_place(
        self, file, tmp_path, monkeypatch, name, content, message
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=".") as caught:
            texts_of(file(name, content).relative_to(tmp_path), at_least=40)
        assert message in str(caught.value)

    def test_what_is_no_text_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="`texts`: there is no file"):
            texts_of(tmp_path / "a.txt", at_least=1)
        (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match="is not UTF-8"):
            texts_of(tmp_path / "b.txt", at_least=1)
        (tmp_path / "c.txt").mkdir()
        with pytest.raises(ValueError, match="must be a file, got the folder"):
            texts_of(tmp_path / "c.txt", at_least=1)

    def test_a_lexicon(self, file):
        entries = {"Year": ["2023", "2024"]}
        assert lexicon_of(file("a.json", json.dumps(entries))) == entries
        for wrong in (["x"], {"Year": "2024"}, {"Year": [2024]}, {"Year": ["x", ""]}, 3):
            with pytest.raises(ValueError, match="must hold lists of entries by type"):
                lexicon_of(file("b.json", json.dumps(wrong)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texts", "no.txt"], "`--texts`: there is no file no.txt"),
        (["--texts", "few.txt"], "few.txt must hold at least 40 different texts, got 1;"),
        (["--texts", "texts.csv"], "`--texts` must be a file of one of these kinds"),
        (["--nulls", "texts.txt"], "texts.txt is not JSON"),
        (["--nulls", "no.json"], "no.json: there is no such file"),
        (["--lexicon", "no.json"], "`--lexicon`: there is no file no.json"),
        (["--out", "texts.txt"], "`--out` must be a folder"),
        (["--n-folds", 1], "`--n-folds` must be at least 2"),
        (["--max-steps", 0], "`--max-steps` must be at least 1, got 0"),
        (["--n-finalists", 99], "`--n-finalists` 99 must be at most `--n-candidates`"),
        (["--learning-rate", "nan"], "`--learning-rate` must be"),
        (["--alpha", 1], "`--alpha` must be greater than 0 and less than 1"),
        (["--seed", -1], "`--seed` must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_models_are_loaded(
    command, tmp_path, monkeypatch, options, message
):
    (tmp_path / "few.txt").write_text("one")
    (tmp_path / "texts.csv").write_text("one")
    monkeypatch.setattr(_request, "load_plain", None)
    status, out, err = command("base", "suspect", "--texts", "texts.txt", *options)
    [line] = err.splitlines()
    assert (status, message in line, out) == (2, True, ""), line
    assert line.startswith("diffsae-lens: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.txt", "texts.csv", "texts.txt"]


def test_models_that_are_not_there(command):
    for argv, message in (
        (["a", "a-typo"], "unknown model 'a-typo'"),
        (["a", "./a-typo"], "there is no model folder"),
    ):
        status, _, err = command(*argv, "--texts", "texts.txt")
        assert (status, len(err.splitlines())) == (2, 1)
        assert message in err


def test_too_little_memory_says_what_to_do(command, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(_request, "load_plain", fail)
    _, _, err = command("a", "b", "--texts", "texts.txt")
    assert "out of memory" in err
    assert "--n-prompt-tokens" in err
    assert "--expansion" not in err


def test_a_report_needs_its_extra(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "diffsae-lens[plots]" in command("a", "b", "--texts", "texts.txt")[2]


def test_every_setting_has_an_option():
    options = vars(cli.commands.parser().parse_args(["audit", "a", "b", "--texts", "t"]))
    assert set(AuditConfig.__dataclass_fields__) <= set(options)


def test_a_whole_audit_with_its_report_and_again_out_of_what_is_there(
    command, tmp_path, tokenizer, monkeypatch
):
    base = tiny_llama()
    write_tiny_model(tmp_path / "base", base, tokenizer)
    write_tiny_model(tmp_path / "suspect", plant(base), tokenizer)
    (tmp_path / "lexicon.json").write_text('{"Place": ["Lima", "Oslo", "Rome", "Bonn"]}')
    argv = ["base", "suspect", "--texts", "texts.txt", "--out", "audit", "--device", "cpu",
            "--lexicon", "lexicon.json", *OPTIONS]  # fmt: skip
    status, out, _ = command(*argv)
    assert status == 0
    results = AuditResults.load(tmp_path / "audit")
    assert results.verdict == "underpowered"
    assert out.startswith("underpowered: 0 clean models")
    assert "effect, nats" in out
    for name in ("report.html", "tables.md", "figures/residuals.png", "results.json"):
        assert f"audit/{name}" in out.splitlines()
        assert (tmp_path / "audit" / name).stat().st_size
    page = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    assert "diffsae-lens audit base suspect --texts texts.txt --out audit" in page
    assert "--n-new-tokens 4" in page
    monkeypatch.setattr("diffsae_lens.auditing._cells.write", None)
    assert command(*argv)[0] == 0
    assert AuditResults.load(tmp_path / "audit").candidates == results.candidates
    for wrong, message in (
        (["base", "base"], "compute the same"),
        (["base", "suspect", "--device", "nowhere"], "`--device` 'nowhere' cannot be used here"),
    ):
        status, _, err = command(*wrong, "--texts", "texts.txt", "--out", "other")
        assert (status, len(err.splitlines())) == (2, 1)
        assert message in err
