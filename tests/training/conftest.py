"""One harvest that every training reads."""

import pytest
import torch

from diffsae_lens.training._harvest import HarvestConfig, harvest
from tests.conftest import HOOKS, hooked, plant, tiny_llama


@pytest.fixture(scope="session")
def activations(tokenizer, tmp_path_factory):
    """Of a tiny pair, not to be written to."""
    base = tiny_llama()
    tokens = torch.randint(3, 259, (64, 12), generator=torch.Generator().manual_seed(0))
    return harvest(
        hooked(base, plant(base), tokenizer), tokens, tmp_path_factory.mktemp("harvest") / "h",
        hook_names=[f"{HOOKS[1]}.{view}" for view in ("diff", "concat", "finetuned")],
        config=HarvestConfig(batch_size=32),
    )  # fmt: skip
