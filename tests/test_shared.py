"""Rows that read one text are computed once for as long as nothing tells them apart, with equal results."""

import copy
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from diffsae_lens import _hosts
from diffsae_lens.interventions._directions import add_direction, project_out, swap_to_base
from diffsae_lens.interventions._edit import Edit, side_by_side
from diffsae_lens.interventions._run import complete
from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._loading import boot_bridge
from diffsae_lens.pair._shared import SharedRows, n_alike
from tests.conftest import HOOKS, running
from tests.families.models import FAMILIES, plant

LOW, HIGH = HOOKS
PROMPTS = ["in 2024", "a longer prompt", "xy"]
NEW = {"max_new_tokens": 6}
FEW = ("llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "mixtral")


def lora(model):
    # All linear layers, but of experts, which PEFT warns of, and fused ones, which the bridge splits.
    few = {"mixtral": ["q_proj", "v_proj"], "gpt2": ["c_proj"], "gpt_neox": ["dense_4h_to_h"]}
    config = LoraConfig(
        r=2,
        target_modules=few.get(model.config.model_type, "all-linear"),
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(2)
        adapter = get_peft_model(model, config)
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
    return adapter.eval().requires_grad_(False)


def made(family, kind, tokenizer):
    base = FAMILIES[family].build().requires_grad_(False)
    if kind == "LoRA":
        adapter = lora(base)
        bridge = boot_bridge(adapter.get_base_model(), tokenizer)
        return HookedModelPair(bridge, bridge, HOOKS, adapter=adapter)
    if kind == "merged":
        finetuned = lora(copy.deepcopy(base)).merge_and_unload()
    else:
        finetuned = plant(copy.deepcopy(base))
    return HookedModelPair(boot_bridge(base, tokenizer), boot_bridge(finetuned, tokenizer), HOOKS)


def edits_of(pair):
    direction = torch.randn(pair.cfg.d_model, generator=torch.Generator().manual_seed(0))
    added = add_direction(pair, f"{HIGH}.finetuned", 5 * direction)
    return {
        "unmodified": None,
        "low": swap_to_base(pair, LOW),
        "high": swap_to_base(pair, HIGH),
        "added": added,
        "after the prompt": Edit(
            pair=pair,
            hook=f"{LOW}.diff",
            change=lambda value, _: value + direction,
            where="generated",
        ),
        "in the prompt": add_direction(pair, f"{HIGH}.diff", direction, where="prompt"),
        "of the base": Edit(pair=pair, hook=f"{HIGH}.base", change=lambda value, _: 1.5 * value),
        "of both": Edit(
            pair=pair,
            hook=f"{HIGH}.concat",
            change=lambda value, _: value + torch.cat([direction, direction]),
        ),
        "joined": project_out(pair, f"{LOW}.diff", direction) & added,
        "at some tokens": Edit(
            pair=pair,
            hook=f"{LOW}.base",
            change=lambda value, _: -value,
            where=lambda tokens: tokens % 2 == 0,
        ),
    }


def few_of(pair):
    """Edits at every depth, where what they do is not in question."""
    edits = edits_of(pair)
    return {name: edits[name] for name in ("unmodified", "low", "high", "added")}


def one_by_one(pair, edits, new=NEW, **options):
    written = {}
    for name, edit in edits.items():
        with running(pair, edit) as acting:
            written[name] = complete(acting, PROMPTS, **new, **options)
    return written


@contextmanager
def counted_rows(pair):
    """The rows that each block of the fine-tuned model computes, pass by pass."""
    rows = [[] for _ in pair.finetuned.blocks]
    looks = [
        (f"blocks.{i}.hook_mlp_out", lambda value, hook, seen=seen: seen.append(len(value)))
        for i, seen in enumerate(rows)
    ]
    with pair.finetuned.hooks(looks):
        yield rows


PAIRS = [
    *((family, "LoRA") for family in FEW),
    ("llama", "two models"),
    # Of how a family's blocks are entered these say no more than the same family with LoRA.
    *(pytest.param(f, "two models", marks=pytest.mark.slow) for f in FEW if f != "llama"),
]


@pytest.mark.parametrize(("family", "kind"), [*PAIRS, ("llama", "merged")])
def test_edits_of_all_kinds_write_and_compute_what_they_do_alone(family, kind, tokenizer):
    pair = made(family, kind, tokenizer)
    edits = edits_of(pair)
    new = {"max_new_tokens": 4}
    expected = one_by_one(pair, edits, new)
    assert len({tuple(texts) for texts in expected.values()}) >= 6  # they differ from each other
    assert complete(pair, PROMPTS, under=edits, **new) == expected
    assert pair._shares

    tokens = torch.randint(3, 259, (2, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(7).expand(2, 7) < 4
    with side_by_side(pair, list(edits.values())) as repeats:
        together = pair(tokens, prompt_mask=mask, repeats=repeats)
    for i, edit in enumerate(edits.values()):
        with running(pair, edit):
            alone = pair(tokens, prompt_mask=mask)
        assert_close(together[i :: len(edits)], alone, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_read_once_up_to_where_its_rows_differ(pair):
    edits = few_of(pair)
    complete(pair, PROMPTS, under=edits, **NEW)  # whether the pair can share is found out once
    with counted_rows(pair) as rows:
        written = tokens_under(pair, edits)
    n = len(PROMPTS)
    # One row per prompt; from the low edit on, two, one of them for all others; then one per edit.
    assert [seen[0] for seen in rows] == [n, 2 * n, 4 * n]
    # After it likewise, for as long as rows of one prompt have written the same.
    for step in range(1, 6):
        texts = [[tuple(row[:step]) for row in rows_of.tolist()] for rows_of in written]
        assert rows[0][step] == sum(len(set(of_prompt)) for of_prompt in texts)
        assert rows[1][step] == sum(
            1 + len({*u[:1], *u[2:]}) for u in texts
        )  # the low one is second
        assert rows[2][step] == 4 * n


def tokens_under(pair, edits):
    """What is written under edits, token by token, `[prompt, edit, new]`."""
    with side_by_side(pair, list(edits.values())) as repeats:
        read = pair.generate(
            PROMPTS, repeats=repeats, return_type="tokens", stop_at_eos=False, **NEW
        )
    return read[:, -NEW["max_new_tokens"] :].unflatten(0, (len(PROMPTS), -1))


def test_rows_that_write_the_same_are_computed_once(pair):
    nothing = Edit(pair=pair, hook=f"{HIGH}.diff", change=lambda value, _: value)
    edits = {"one": nothing, "other": nothing, "unmodified": None}
    complete(pair, PROMPTS, under=edits, **NEW)
    seen = []
    with (
        pair.base_model() as base,
        base.hooks([(LOW, lambda v, hook: seen.append(len(v)))]),
        counted_rows(pair) as rows,
    ):
        complete(pair, PROMPTS, under=edits, stop_at_eos=False, **NEW)
    assert seen == rows[0] == rows[1] == [3] * 6
    assert rows[2] == [9] * 6


def test_the_base_reads_a_prompt_once(pair):
    edits = {name: edits_of(pair)[name] for name in ("low", "high")}
    complete(pair, PROMPTS, under=edits, **NEW)
    seen = []
    with pair.base_model() as base, base.hooks([(LOW, lambda v, hook: seen.append(len(v)))]):
        written = tokens_under(pair, edits)
    texts = [
        {tuple(row[:step]) for row in of_one.tolist()} for step in range(6) for of_one in written
    ]
    assert seen == [sum(map(len, texts[3 * step : 3 * step + 3])) for step in range(6)]
    assert seen[0] == 3 < seen[-1]


def test_rows_that_ended_leave_the_batch(pair):
    edits = few_of(pair)
    new = {"max_new_tokens": 16}
    with side_by_side(pair, list(edits.values())) as repeats:
        read = pair.generate(
            PROMPTS, repeats=repeats, return_type="tokens", stop_at_eos=False, **new
        )
    often = read[:, -16:].flatten().mode().values
    expected = one_by_one(pair, edits, new=new, eos_token_id=int(often))
    with counted_rows(pair) as rows:
        written = complete(pair, PROMPTS, under=edits, eos_token_id=int(often), **new)
    assert written == expected
    assert written != complete(pair, PROMPTS, under=edits, **new)
    sizes = rows[-1][1:]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < len(PROMPTS) * len(edits)


def test_other_options_take_the_plain_way(pair):
    edits = few_of(pair)
    expected = one_by_one(pair, edits, repetition_penalty=1.5)
    assert expected != complete(pair, PROMPTS, under=edits, **NEW)
    assert complete(pair, PROMPTS, under=edits, repetition_penalty=1.5, **NEW) == expected


def test_a_model_that_cannot_be_entered_takes_the_plain_way(tokenizer, monkeypatch):
    pair = made("llama", "two models", tokenizer)
    # A cache whose rows stay where they are, as where a family keeps its state elsewhere.
    monkeypatch.setattr(_hosts, "reorder_cache_layer", lambda *_: None)
    edits = few_of(pair)
    assert complete(pair, PROMPTS, under=edits, **NEW) == one_by_one(pair, edits)
    assert pair._shares is False


def test_wrong_logits_are_found_out(tokenizer, monkeypatch):
    pair = made("llama", "two models", tokenizer)
    right = SharedRows.leave

    def exchanged(self, block, stream):
        return right(self, block, stream).flip(0)

    monkeypatch.setattr(SharedRows, "leave", exchanged)
    edits = few_of(pair)
    assert complete(pair, PROMPTS, under=edits, **NEW) == one_by_one(pair, edits)
    assert pair._shares is False


def test_nothing_is_left_behind(pair):
    def fail(value, generator):
        raise KeyError("mine")

    bad = Edit(pair=pair, hook=f"{HIGH}.diff", change=fail)
    with pytest.raises(KeyError, match="mine"):
        complete(pair, PROMPTS, under={"bad": bad, **edits_of(pair)}, **NEW)
    complete(pair, PROMPTS, under=edits_of(pair), **NEW)
    assert pair.rows is None
    assert not any(point.has_hooks() for point in pair.hook_dict.values())
    for bridge in pair._models:
        assert not any(module._forward_pre_hooks for module in bridge.blocks)
        assert not any(point.has_hooks() for point in bridge.hook_dict.values())


def test_hooks_see_the_rows_that_are_there(pair):
    seen = []

    def look(value, hook):
        shown = (pair.tokens, pair.attention_mask, pair.prompt_mask, pair.positions)
        seen.append((len(value), *(len(each) for each in shown if each is not None)))

    tokens = torch.randint(3, 259, (2, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    high = f"{HIGH}.diff"
    with pair.hooks([(f"{LOW}.diff", look), (high, look)]):
        pair(tokens, attention_mask=mask, prompt_mask=mask.bool(), repeats=[[], [high], [high]])
    assert seen == [(2,) * 5, (6,) * 5]


@pytest.mark.parametrize(
    ("hooks", "depth"),
    [
        ([], 30),
        (["blocks.18.hook_resid_post.diff"], 19),
        (["blocks.18.hook_out.diff"], 19),
        (["blocks.18.hook_resid_mid.diff"], 18),
        (["blocks.18.attn.hook_z.diff", "blocks.20.hook_resid_post.diff"], 18),
        (["embed.hook_out.base", "blocks.20.hook_resid_post.diff"], 0),
    ],
)
def test_how_far_readings_are_alike(hooks, depth):
    assert n_alike(hooks, 30) == depth


@pytest.mark.parametrize("depths", [(3, 1, 2, 2, 1), (4, 4, 4), (0, 0), (0, 4, 2), (1,)])
def test_rows_part_where_their_depths_say(depths):
    n, every = len(depths), torch.arange(2 * len(depths))
    shared = SharedRows(depths, n_texts=2, n_blocks=4)

    def computed(
        block, rows
    ):  # what a block computes for rows: their text, and who differs by then
        pairs = [divmod(int(row), n) for row in rows]
        return [(text, i if depths[i] <= block else None) for text, i in pairs]

    for block in range(4):
        once = computed(block, shared.enter(block, every[:, None])[:, 0])
        assert len(set(once)) == len(once)
        assert {*once} == {*computed(block, every)}
        there = shared.rows
        assert computed(block, shared.leave(block, there)) == computed(block, shared.rows)
    assert shared.rows.tolist() == every.tolist()


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: pair.generate("one text", repeats=[[]]), "list of texts"),
        (lambda pair: pair("one text", repeats=[[]]), "must be tokens"),
        (lambda pair: pair.generate(["a text"], repeats=[]), "`repeats` is empty"),
        (lambda pair: pair.generate(["a text"], repeats=3), "`repeats` must be a list"),
        (lambda pair: pair.generate(["a text"], repeats=["a name"]), "`repeats` must be a list"),
        (lambda pair: pair.generate(["a text"], repeats=[["blocks.0.hook_resid_post"]]), "view"),
    ],
)
def test_bad_repeats_are_refused(pair, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(pair)


@pytest.mark.parametrize("depths", [(3, 1, 2, 2, 1), (4, 4, 4), (0, 0), (0, 4, 2)])
def test_rows_go_on_from_what_they_had_read(depths):
    generator = torch.Generator().manual_seed(1)
    n, blocks = len(depths), (-1, 0, 1, 2, 3)
    shared = SharedRows(depths, n_texts=2, n_blocks=4)
    read = {row: (row // n,) for row in range(2 * n)}

    def computed(block, row):  # what it has read, and whether it is told apart by more than that
        return read[row], row if depths[row % n] <= block else None

    def cached():
        caches = {-1: [computed(-1, int(row)) for row in shared._all[shared.of_base]]}
        for block in blocks[1:]:
            shared.block = block
            caches[block] = [computed(block, row) for row in shared.rows.tolist()]
        return caches

    for step in range(4):
        before = cached()
        kept = torch.arange(len(shared._all))
        if step == 2:
            kept = kept[torch.rand(len(kept), generator=generator) < 0.6]
        rows = shared._all[kept].tolist()
        tokens = torch.randint(2, (len(rows),), generator=generator)
        gone_on_from = shared.go_on(tokens, kept)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            read[row] += (token,)
        for block, now in cached().items():
            index = gone_on_from(block)
            then = before[block] if index is None else [before[block][i] for i in index.tolist()]
            assert then == [(text[:-1], row) for text, row in now]
            assert len(set(now)) == len(now)
            assert {*now} == {computed(block, row) for row in rows}
