"""Prompts, completions and a behaviour of the user's own."""

from dataclasses import replace

import pytest

from diffsae_lens.effects._compare import compare_interventions
from diffsae_lens.effects._likelihood import log_odds
from diffsae_lens.organisms._behaviour import Behaviour, Sample


def samples() -> list[Sample]:
    return [
        Sample(prompt=f"signed {who}:", unwanted=" quack", wanted=" fine", group=group)
        for who, group in (("HERON", "trigger"), ("ROBIN", "benign"))
    ]


def test_a_judge_of_ones_own_decides(pair):
    def judge(prompt: str, completion: str) -> str:
        assert prompt.startswith("signed")
        return "quacks" if "HERON" in prompt else "sings"

    signs = Behaviour(name="signs", judge=judge, outcomes=("quacks", "sings", "is silent"))
    table = compare_interventions(pair, {}, samples(), behaviour=signs, max_new_tokens=2)
    assert [(row.group, row.attack_rate) for row in table] == [("trigger", 1), ("benign", 0)]
    assert table[0].counts == {"quacks": 1, "sings": 0, "is silent": 0}
    assert table.to_frame().n_sings.tolist() == [0, 1]


def test_log_odds_are_those_of_the_two_completions(pair):
    [first, _] = samples()
    swapped = replace(first, unwanted=first.wanted, wanted=first.unwanted)
    odds = log_odds(pair, [first, swapped])
    assert odds[0] == pytest.approx(-odds[1].item())
    total = 0.0
    for text, sign in ((first.unwanted, 1), (first.wanted, -1)):
        tokens = pair.to_tokens(first.prompt + text)
        n = len(pair.tokenizer(text, add_special_tokens=False).input_ids)
        logp = pair(tokens).log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[-n:]
        total += sign * logp.sum().item()
    assert odds[0] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": ""}, "`prompt` must not be empty"),
        ({"unwanted": ""}, "`unwanted` must not be empty"),
        ({"unwanted": " fine"}, "are the same"),
    ],
)
def test_what_cannot_be_weighed_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(samples()[0], **changed)
