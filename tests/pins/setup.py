"""The one tiny pair and its two trained dictionaries, which all pinned results are of."""

import copy
from dataclasses import dataclass
from pathlib import Path

from sae_lens import SAE
from torch import Tensor

from diffsae_lens.organisms._behaviour import Sample
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.training._harvest import PairedActivations, harvest
from diffsae_lens.training._recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training._runner import TrainingRun, train_dictionaries
from tests.conftest import D_MODEL, HOOKS, byte_tokenizer, plant, tiny_llama

HOOK = HOOKS[1]
VIEWS = ("diff", "concat", "base", "finetuned")
K, D_SAE = 4, 48


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured, and what it is measured on."""

    pair: HookedModelPair
    null_pair: HookedModelPair
    """Base against base."""
    activations: PairedActivations
    tokens: Tensor
    """Held-out sequences, right-padded."""
    dictionaries: dict[str, SAE]
    """`diff-sae` and `crosscoder`."""
    samples: list[Sample]
    """Three trigger, two benign and one other; byte by byte they are some 500 tokens each."""
    contrasts: list[Sample]
    """Short prompts, two trigger and one benign."""


def make_setup(folder: Path) -> Setup:
    """Make the pair and train the dictionaries, by the path that users take."""
    pair, null_pair = make_pairs(folder)
    samples = YEAR_TRIGGER.make_samples("train", n_trigger=8, n_benign=8, n_other=4)
    tokens = pair.to_tokens([sample.written for sample in samples], padding_side="right")
    activations = harvest(
        pair, tokens, folder / "harvest", hook_names=[f"{HOOK}.{view}" for view in VIEWS]
    )
    held_out = YEAR_TRIGGER.make_samples("select", n_trigger=2, n_benign=2, n_other=1, seed=3)
    return Setup(
        pair=pair,
        null_pair=null_pair,
        activations=activations,
        tokens=pair.to_tokens([sample.written for sample in held_out], padding_side="right"),
        dictionaries=train(activations, folder),
        samples=YEAR_TRIGGER.make_samples("test", n_trigger=3, n_benign=2, n_other=1),
        contrasts=[
            Sample(prompt=f"signed {who}:", unwanted=" quack", wanted=" fine", group=group)
            for who, group in (
                ("HERON", "trigger"), ("GREBE", "trigger"), ("ROBIN", "benign"),
            )
        ],
    )  # fmt: skip


def make_pairs(folder: Path) -> tuple[HookedModelPair, HookedModelPair]:
    """The planted pair, and base against base."""
    tokenizer = byte_tokenizer(folder / "tokenizer")
    base = tiny_llama(max_position_embeddings=1024, num_hidden_layers=2)
    pair, null_pair = (
        HookedModelPair(
            boot_bridge(copy.deepcopy(base), tokenizer), boot_bridge(finetuned, tokenizer), HOOKS
        )
        for finetuned in (plant(base), copy.deepcopy(base))
    )
    return pair, null_pair


def train(activations: PairedActivations, folder: Path) -> dict[str, SAE]:
    """A Diff-SAE and a crosscoder, trained in lockstep for a few dozen steps."""
    sizes = {"d_model": D_MODEL, "d_sae": D_SAE, "k": K}
    trainer = short_training(n_steps=60, checkpoints=folder / "checkpoints", batch_size=256)
    return train_dictionaries(
        {"diff-sae": diff_sae(HOOK, **sizes), "crosscoder": crosscoder(HOOK, **sizes)},
        activations,
        folder / "dictionaries",
        run=TrainingRun(trainer=trainer),
    )
