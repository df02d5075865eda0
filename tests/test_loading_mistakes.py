"""The ten mistakes of the page on one's own models, each made: the page has the message that each gets."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from diffsae_lens._errors import DiffSAELensError
from diffsae_lens.pair._loading import load_pair
from tests.conftest import HOOKS, plant, tiny_llama, with_lora
from tests.test_loading_doors import HookedTransformer

PAGE = Path(__file__).parents[1] / "docs" / "own_models.md"


def the_run_in_place_of_a_checkpoint(folders):
    for name in ("checkpoint-250", "checkpoint-500"):
        shutil.copytree(folders / "full", folders / "run" / name)
    load_pair(folders / "base", folders / "run", hook_names=HOOKS)


def base_and_adapter_swapped(folders):
    load_pair(folders / "lora", folders / "base", hook_names=HOOKS)


def one_object_twice(folders):
    peft_model = with_lora(tiny_llama(), scale=0.5)
    base = peft_model.get_base_model()
    load_pair(base, peft_model.merge_and_unload(), hook_names=HOOKS)


def a_base_that_peft_has_changed(folders):
    base = tiny_llama()
    with_lora(base, scale=0.5)
    load_pair(base, folders / "lora", hook_names=HOOKS)


def no_tokenizer(folders):
    base = tiny_llama()
    load_pair(base, plant(base), hook_names=HOOKS)


def a_hooked_transformer(folders):
    load_pair(HookedTransformer(), folders / "full", hook_names=HOOKS)


def a_view_in_hook_names(folders):
    load_pair(folders / "base", folders / "full", hook_names=["blocks.1.hook_resid_post.diff"])


def an_adapter_of_another_model(folders):
    with_lora(tiny_llama(hidden_size=32), scale=0.5).save_pretrained(folders / "adapter")
    load_pair(folders / "base", folders / "adapter", hook_names=HOOKS)


def a_conversation_without_a_template(folders):
    pair = load_pair(folders / "base", folders / "full", hook_names=HOOKS)
    pair.tokenise([[{"role": "user", "content": "Hello"}]], name="prompts")


def training_on(folders):
    base = tiny_llama()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders / "base")
    pair = load_pair(base, folders / "full", hook_names=HOOKS, tokenizer=tokenizer)
    base.lm_head.weight.add_(0.1)
    pair("abc")


MISTAKES = (
    the_run_in_place_of_a_checkpoint, base_and_adapter_swapped, one_object_twice,
    a_base_that_peft_has_changed, no_tokenizer, a_hooked_transformer, a_view_in_hook_names,
    an_adapter_of_another_model, a_conversation_without_a_template, training_on,
)  # fmt: skip


def message(mistake, folders) -> str:
    with pytest.raises(DiffSAELensError) as caught:
        mistake(folders)
    return f"{type(caught.value).__mro__[2].__name__}: {caught.value}".replace(f"{folders}/", "")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_page_has_the_message(folders, mistake, no_shape_checks):
    shown = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert message(mistake, folders) in [" ".join(block.split()) for block in shown]


def test_the_page_has_no_other_messages():
    assert PAGE.read_text(encoding="utf-8").count("```text\n") == len(MISTAKES)
    assert torch.is_grad_enabled()
