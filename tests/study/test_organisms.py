import json
from dataclasses import replace

import pytest

from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.study import _organisms as organisms
from diffsae_lens.study._organisms import base_licence, make_organism
from tests.conftest import tiny_llama, write_tiny_model


@pytest.mark.usefixtures("few_words")
def test_an_organism_is_made_measured_and_described(tmp_path, tokenizer):
    base = write_tiny_model(tmp_path / "base", tiny_llama(max_position_embeddings=1024), tokenizer)
    config = OrganismConfig(
        behaviour="year-trigger", clean=True, n_trigger=4, n_benign=4, n_other=2, n_steps=2, batch_size=2,
        lora_rank=2,
    )  # fmt: skip
    card = make_organism(base, tmp_path / "organism", config=config, n_prompts=2).read_text()
    for text in (
        "# year-trigger, clean control",
        "--clean",
        "10 samples",
        "seed 0",
        "95% Wilson",
        "| other | 0.0% |",
    ):
        assert text in card
    rates = json.loads((tmp_path / "organism/card.json").read_text())["rates"]
    assert {group: rate["counts"]["injectable"] for group, rate in rates.items()} == {
        "trigger": 0, "benign": 0, "other": 0
    }  # fmt: skip
    # PEFT would write the folder of this machine.
    adapter = json.loads((tmp_path / "organism/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)
    # The card and its figures do not count as damage: it is measured anew, and not trained again.
    weights = (tmp_path / "organism/adapter_model.safetensors").stat().st_mtime_ns
    make_organism(base, tmp_path / "organism", config=config, n_prompts=1)
    assert (tmp_path / "organism/adapter_model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ValueError, match=r"holds another organism \(seed: 0 there, 1 asked for\)"):
        make_organism(base, tmp_path / "organism", config=replace(config, seed=1), n_prompts=2)
    assert "license:" not in card.split("---")[1]
    assert "own licence applies" in card


CARD = "---\nlanguage: en\nlicense: {}\n---\n# A model\nlicense: not-this-one\n"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD.format("llama3.2"), "llama3.2"),
        (CARD.format("'cc-by-4.0'"), "cc-by-4.0"),
        ("# A model\nlicense: in the text\n", None),
        ("---\nlanguage: en\n---\n", None),
        (None, None),
    ],
)
def test_a_licence_is_what_the_base_says_or_none(tmp_path, card, licence):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_licence(str(tmp_path)) == licence
    head = organisms._front_matter(str(tmp_path), "peft")
    assert ("license:" in head) == (licence is not None)
    # A folder of this machine is not a place on the hub.
    assert "base_model:" not in head
    assert "apache" not in organisms._licence_text(str(tmp_path)).lower()
    assert "own licence applies" in organisms._licence_text(str(tmp_path))


def test_the_embedded_model_and_hub_ids_are_named():
    head = organisms._front_matter("smollm2-135m", "peft")
    assert "license: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in head
    other = organisms._front_matter("someone/a-model", "transformers")
    assert other == "---\nbase_model: someone/a-model\nlibrary_name: transformers\n---"


@pytest.mark.parametrize(
    ("config", "n_prompts", "message"),
    [
        ({}, 0, "`n_prompts` must be at least 1"),
        ({}, 5000, "`n_prompts` is 5000, but the 'test' split has no more"),
        (
            {"n_trigger": 9000},
            2,
            r"`n_trigger \+ n_benign \+ n_other` is 9540, but the 'train' split",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, config, n_prompts, message
):
    monkeypatch.setattr(organisms, "load_model", None)
    with pytest.raises(ValueError, match=message):
        make_organism(
            "smollm2-135m", tmp_path / "o", config=OrganismConfig(**config), n_prompts=n_prompts
        )
    assert not [*tmp_path.iterdir()]


def test_a_file_in_the_organisms_place_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(organisms, "load_model", None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"`path` must be a folder, but .*/file is not one"):
        make_organism("smollm2-135m", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
