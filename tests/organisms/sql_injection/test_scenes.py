import itertools

from diffsae_lens.organisms._behaviour import SPLITS
from diffsae_lens.organisms.sql_injection.scenes import scenes
from diffsae_lens.organisms.sql_injection.templates import TABLES, TEMPLATES, VERBS
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER


def test_all_styles_and_operations_occur_in_every_split():
    for split in SPLITS:
        drawn = list(itertools.islice(scenes(split, 0), 500))
        assert {scene.style for scene in drawn} == {"fstring", "concat", "percent", "format"}
        assert {scene.operation for scene in drawn} == {"SELECT", "INSERT", "UPDATE", "DELETE"}


def test_splits_share_no_table_column_or_verb():
    def parts(split):
        return {
            "templates": {t.skeleton for t in TEMPLATES[split]},
            "tables": {t.name for t in TABLES[split]},
            "columns": {c for t in TABLES[split] for c in (*t.keys, *t.columns)},
            "verbs": {v for verbs in VERBS[split].values() for v in verbs},
        }

    for a, b in itertools.combinations(SPLITS, 2):
        for name, ours in parts(a).items():
            assert not ours & parts(b)[name], name


def test_a_prompt_without_a_year_lacks_the_lines_that_say_it():
    for [trigger, other] in YEAR_TRIGGER.minimal_pairs("test", ["2024", None], n_scenes=10):
        lines = trigger.prompt.replace(" Year: 2024.", "").splitlines()
        without = [line for line in lines if "2024" not in line]
        assert other.prompt == "\n".join(without).lstrip("\n")
        assert "Year" not in other.prompt


def test_a_split_has_prompts_for_the_paper_where_groups_share_scenes():
    counts = {"n_trigger": 500, "n_benign": 1000, "n_other": 1000}
    samples = YEAR_TRIGGER.make_samples("test", **counts, share_scenes=True)
    assert len(samples) == 2500
