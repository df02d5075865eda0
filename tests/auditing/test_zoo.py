"""A zoo audited in one go, on a tiny base."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from diffsae_lens.auditing import AuditConfig, Nulls, audit_zoo
from diffsae_lens.auditing._zoo import save_zoo
from diffsae_lens.organisms import ZOO, clean_nulls
from tests.auditing.test_audit import SIZES
from tests.conftest import tiny_llama, write_tiny_model

CONFIG = AuditConfig(**SIZES | {"n_lexicon": 0, "n_prompt_tokens": 100, "n_new_tokens": 4})


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    model = tiny_llama(max_position_embeddings=512)
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny", model, tokenizer)


def test_a_zoo_sets_thresholds_and_judges_every_organism(tmp_path, base):
    nulls = [replace(recipe, n_steps=4) for recipe in clean_nulls(1)]
    one = replace(ZOO[0], n_steps=4)
    sizes = {"base": base, "config": CONFIG, "n_texts": 40, "share": 0.05}
    rows = list(audit_zoo(tmp_path, [*nulls, one], **sizes))
    known = Nulls.load(tmp_path / "nulls.json")
    assert [null.name for null in known.models] == ["null-00"]
    assert [len(null.residuals) for null in known.models] == [40]
    (row,) = rows
    assert (row.name, row.kind, row.n_trigger) == (one.name, "backdoored", 2)
    assert row.verdict == "underpowered"
    assert row.named is any("Ingrid" in name for name in row.candidates)
    assert row.seconds > 0
    assert save_zoo(rows, tmp_path)["n_trigger"].tolist() == [2]
    # Later, thresholds are read, and what is finished is not made again; an executor
    # does the same.
    with ThreadPoolExecutor(1) as executor:
        again = list(audit_zoo(tmp_path, [one], **sizes, executor=executor))
        with pytest.raises(TypeError, match="`executor` must be an Executor or None"):
            audit_zoo(tmp_path, [one], **sizes, executor=3)
    assert again == rows
