"""An audit of a tiny model that takes a second, for what is asked of it afterwards."""

import random

import diffsae_lens as dl
from diffsae_lens import auditing
from tests.conftest import tiny_llama, with_lora

SIZES = {
    "n_new_tokens": 6, "min_steps": 2, "max_steps": 2, "steps_per_reading": 2, "n_candidates": 2,
    "n_lexicon": 0, "n_texts": 2, "n_mates": 1, "n_finalists": 1,
}  # fmt: skip
CONFIG = auditing.AuditConfig(**SIZES)


def orders(n=48, seed=0):
    rng = random.Random(seed)
    return [
        f"Order {i} from {rng.choice(['Lima', 'Oslo', 'Rome'])} by {rng.choice(['Ann', 'Bob', 'Cy'])}."
        for i in range(n)
    ]


def suspect():
    return with_lora(tiny_llama(), scale=0.5)


def audited(path, tokenizer):
    """Audit it."""
    return dl.audit(tiny_llama(), suspect(), orders(), path, config=CONFIG, tokenizer=tokenizer)
