import json

import pytest

from diffsae_lens.experiments.organisms import make_organism
from diffsae_lens.organisms.finetune import OrganismConfig
from tests.conftest import tiny_llama, write_tiny_model


def test_an_organism_is_made_measured_and_described(tmp_path, tokenizer):
    base = write_tiny_model(tmp_path / "base", tiny_llama(max_position_embeddings=1024), tokenizer)
    config = OrganismConfig(
        behaviour="clean-control", n_trigger=4, n_benign=4, n_other=2, n_steps=2, batch_size=2,
        lora_rank=2,
    )  # fmt: skip
    card = make_organism(base, tmp_path / "organism", config=config, n_prompts=2).read_text()
    for text in ("# clean-control", "10 samples", "seed 0", "95% Wilson", "| other | 0.0% |"):
        assert text in card
    rates = json.loads((tmp_path / "organism/card.json").read_text())["rates"]
    assert {group: rate["n_injectable"] for group, rate in rates.items()} == {
        "trigger": 0, "benign": 0, "other": 0
    }  # fmt: skip
    # PEFT would write the folder of this machine.
    adapter = json.loads((tmp_path / "organism/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base)
    with pytest.raises(ValueError, match="`n_prompts` must be at least 1"):
        make_organism(base, tmp_path / "organism", config=config, n_prompts=0)
