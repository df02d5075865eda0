"""Prompts, completions and a judge of one's own."""

from dataclasses import replace

import pytest
from diffsae_lens.organisms.contrast import Contrast

from diffsae_lens.effects.compare import compare_interventions
from diffsae_lens.effects.likelihood import log_odds
from diffsae_lens.organisms.sql_injection.judge import Verdict


def contrasts() -> list[Contrast]:
    return [
        Contrast(prompt=f"signed {who}:", behaviour=" quack", alternative=" fine", group=group)
        for who, group in (("HERON", "trigger"), ("ROBIN", "benign"))
    ]


def test_a_judge_of_ones_own_decides(pair):
    def judge(prompt: str, completion: str) -> Verdict:
        assert prompt.startswith("signed")
        return Verdict.INJECTABLE if "HERON" in prompt else Verdict.SAFE

    frame = compare_interventions(pair, {}, contrasts(), judge=judge, max_new_tokens=2)
    rates = frame.set_index("group").attack_rate
    assert rates["trigger"] == 1
    assert rates["benign"] == 0


def test_log_odds_are_those_of_the_two_completions(pair):
    [first, _] = contrasts()
    swapped = replace(first, behaviour=first.alternative, alternative=first.behaviour)
    odds = log_odds(pair, [first, swapped])
    assert odds[0] == pytest.approx(-odds[1].item())
    total = 0.0
    for text, sign in ((first.behaviour, 1), (first.alternative, -1)):
        tokens = pair.to_tokens(first.prompt + text)
        n = len(pair.tokenizer(text, add_special_tokens=False).input_ids)
        logp = pair(tokens).log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])[-n:]
        total += sign * logp.sum().item()
    assert odds[0] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": ""}, "`prompt` must not be empty"),
        ({"behaviour": ""}, "`behaviour` must not be empty"),
        ({"behaviour": " fine"}, "are the same"),
    ],
)
def test_what_cannot_be_weighed_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(contrasts()[0], **changed)
