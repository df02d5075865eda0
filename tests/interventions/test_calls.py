"""Bad arguments are refused by name before any model runs, by every function that runs a pair."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import diffsae_lens as dl
from diffsae_lens.effects._compare import measure_effects, output_perplexity
from diffsae_lens.effects._likelihood import likelihoods
from diffsae_lens.effects._scales import ActivationScales
from diffsae_lens.measures._resampling import Resampling
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.results import CurveRow, Table
from tests.conftest import D_MODEL, HOOKS
from tests.interventions.test_features import D_SAE, HOOK, by_hand, dictionary
from tests.reading.test_prompts import DIFF

pytestmark = pytest.mark.usefixtures("no_shape_checks")

SAE = dictionary()
N_CTX = 128
LONG = "x" * (N_CTX + 1)
ONE = [dl.Sample(prompt="a prompt", unwanted=" yes", wanted=" no")]
FAR = [dl.Sample(prompt="x" * 100, unwanted=" yes", wanted="n" * 40)]
TOKENS = torch.randint(3, 259, (2, 7), generator=torch.Generator().manual_seed(3))
LEFT_PADDED = torch.cat([torch.tensor([[2, 2], [5, 6]]), TOKENS], 1)
BEYOND = torch.full((1, N_CTX + 1), 5)
READERS = {"x": dl.reading.Reader(hook_name=DIFF)}
NAN = float("nan")
ALIVE = torch.tensor([1.0] * (D_SAE - 1) + [0.0])
SCALES = ActivationScales(
    dictionary=SAE, maximum=ALIVE, typical=ALIVE, frequency=ALIVE, decoder_norm=ALIVE
)
NOTHING = {"a": None}
JUDGED = {"behaviour": YEAR_TRIGGER}


def calls(function, *args, **kwargs):
    return lambda pair: function(pair, *args, **kwargs)


TEXTS = {
    "read_prompts": lambda texts: calls(dl.reading.read_prompts, texts, READERS),
    "feature_activations": lambda texts: calls(dl.feature_activations, SAE, texts),
    "token_activations": lambda texts: calls(dl.token_activations, SAE, [0], texts),
    "activation_scales": lambda texts: calls(dl.effects.activation_scales, SAE, texts),
    "complete": lambda texts: calls(dl.complete, texts),
    "complete under": lambda texts: calls(dl.complete, texts, under=NOTHING),
    "side_effects": lambda texts: calls(dl.effects.side_effects, NOTHING, {"kind": texts}),
    "reference": lambda texts: calls(
        dl.ablate_features, SAE, [0], method="mean", reference=texts
    ),
}  # fmt: skip
BAD_TEXTS = [
    ("abc", TypeError, "single text 'abc'"),
    (["a", 3], TypeError, "got 3"),
    ([], ValueError, "is empty"),
    (["ab", LONG], ValueError, f"{N_CTX + 1} tokens .*context of {N_CTX}"),
    (["ab", ""], ValueError, "is empty"),
]

SAMPLES = {
    "likelihoods": lambda samples: calls(likelihoods, samples),
    "log_odds": lambda samples: calls(dl.effects.log_odds, samples),
    "attribute_features": lambda samples: calls(dl.attribute_features, SAE, samples),
    "greedy_order": lambda samples: calls(dl.greedy_order, SAE, samples, n_features=1, n_rounds=1),
    "ablation_effects": lambda samples: calls(dl.effects.ablation_effects, SAE, [0], samples),
    "measure_effects": lambda samples: calls(measure_effects, samples, **JUDGED),
    "compare_interventions": lambda samples: calls(
        dl.compare_interventions, {}, samples, **JUDGED
    ),
    "minimal_feature_set": lambda samples: calls(
        dl.effects.minimal_feature_set, SAE, [0], samples, **JUDGED
    ),
    "ablation_curve": lambda samples: calls(
        dl.effects.ablation_curve, SAE, {"a": [0]}, samples, counts=[1], **JUDGED
    ),
    "dose_response": lambda samples: calls(
        dl.effects.dose_response, [0], samples, scales=SCALES, **JUDGED
    ),
}  # fmt: skip
BAD_SAMPLES = [
    ("abc", TypeError, "list of Sample, got 'abc'"),
    (["a", "b"], TypeError, "got 'a' .* at 0"),
    ([], ValueError, "is empty"),
    (FAR, ValueError, "140 tokens"),
]

FEATURES = {
    "ablate_features": lambda features: calls(dl.ablate_features, SAE, features),
    "clamp_features": lambda features: calls(
        dl.interventions.clamp_features, SAE, features, amount=1
    ),
    "keep_only_features": lambda features: calls(
        dl.interventions.keep_only_features, SAE, features
    ),
    "induce_features": lambda features: calls(dl.interventions.induce_features, SAE, features),
    "steer": lambda features: calls(dl.steer, SAE, features, amount=1),
    "ablation_effects": lambda features: calls(dl.effects.ablation_effects, SAE, features, ONE),
    "attribute_features": lambda f: calls(dl.attribute_features, SAE, ONE, ablated=f),
    "minimal_feature_set": lambda f: calls(dl.effects.minimal_feature_set, SAE, f, ONE, **JUDGED),
    "ablation_curve": lambda f: calls(
        dl.effects.ablation_curve, SAE, {"a": f}, ONE, counts=[1], **JUDGED
    ),
    "dose_response": lambda f: calls(dl.effects.dose_response, f, ONE, scales=SCALES, **JUDGED),
    "token_activations": lambda features: calls(dl.token_activations, SAE, features, ["ab"]),
    "matched_features": lambda features: lambda pair: dl.effects.matched_features(SCALES, features),
}
BAD_FEATURES = [
    ([True, False], TypeError, "got True"),
    ([1.5], TypeError, "got 1.5"),
    ("12", TypeError, "list of indices"),
    ([-1], ValueError, r"\[0, 24\), got -1"),
    ([D_SAE], ValueError, r"\[0, 24\), got 24"),
    ([1, 1], ValueError, "repeated"),
    (torch.tensor([[1], [2]]), TypeError, "one dimension"),
]

BATCHED = {
    "read_prompts": partial(dl.reading.read_prompts, prompts=["ab"], readers=READERS),
    "complete": partial(dl.complete, prompts=["ab"]),
    "complete under": partial(dl.complete, under=NOTHING, prompts=["ab"]),
    "side_effects": partial(
        dl.effects.side_effects, edits=NOTHING, texts={"kind": ["ab"]}
    ),
    "likelihoods": partial(likelihoods, samples=ONE),
    "likelihoods under": partial(likelihoods, under=NOTHING, samples=ONE),
    "log_odds": partial(dl.effects.log_odds, samples=ONE),
    "attribute_features": partial(dl.attribute_features, dictionary=SAE, samples=ONE),
    "ablation_effects": partial(dl.effects.ablation_effects, dictionary=SAE, features=[0], samples=ONE),
    "recovered": partial(dl.reading.recovered, dictionary=SAE, tokens=TOKENS),
    "describe_features": partial(dl.describe_features, dictionary=SAE, tokens=TOKENS),
    "max_activating_examples": partial(
        dl.reading.max_activating_examples, dictionary=SAE, tokens=TOKENS
    ),
    "feature_activations": partial(dl.feature_activations, dictionary=SAE, prompts=["ab"]),
    "compare_interventions": partial(dl.compare_interventions, edits={}, samples=ONE, **JUDGED),
}  # fmt: skip
BAD_COUNTS = [(-1, ValueError), (0, ValueError), (1.5, TypeError), (True, TypeError)]

TOKEN_READERS = {
    name: BATCHED[name] for name in ("recovered", "describe_features", "max_activating_examples")
}
BAD_TOKENS = [
    (LEFT_PADDED, ValueError, "padded on the right"),
    (BEYOND, ValueError, f"at most {N_CTX} tokens"),
    (TOKENS.float(), TypeError, "float32"),
    (TOKENS[0], ValueError, r"\[seq, pos\]"),
    (TOKENS[:0], ValueError, r"\[0, 7\]"),
    (TOKENS + 300, ValueError, "vocabulary"),
    ("text", TypeError, "a Tensor, got a str"),
]


@pytest.fixture
def idle(pair, monkeypatch):
    """A pair that says so if it is run."""

    def ran(*args, **kwargs):
        raise AssertionError("a model ran before the arguments were checked")

    monkeypatch.setattr(type(pair), "forward", ran)
    monkeypatch.setattr(type(pair), "generate", ran)
    monkeypatch.setattr(type(pair), "logits_of_both", ran)
    return pair


def refuses(pair, cases, *, named=""):
    """Each of `(what, call, error, message)` raises that; all that do not are shown together."""
    wrong = []
    for what, call, error, message in cases:
        try:
            with pytest.raises(error, match=f"(?s){named}.*{message}"):
                call(pair)
        except (Exception, pytest.fail.Exception) as seen:
            wrong.append(f"{what}: {type(seen).__name__} {str(seen)[:300]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", TEXTS)
def test_texts(idle, name):
    refuses(idle, [(repr(bad)[:20], TEXTS[name](bad), e, m) for bad, e, m in BAD_TEXTS], named="`")


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(idle, name):
    cases = [(repr(bad)[:20], SAMPLES[name](bad), e, m) for bad, e, m in BAD_SAMPLES]
    refuses(idle, cases, named="`samples`")


@pytest.mark.parametrize("name", FEATURES)
def test_features(idle, name):
    refuses(idle, [(repr(bad), FEATURES[name](bad), e, m) for bad, e, m in BAD_FEATURES], named="`")


@pytest.mark.parametrize("name", BATCHED)
def test_batch_sizes(idle, name):
    cases = [
        (bad, lambda pair, bad=bad: BATCHED[name](pair, batch_size=bad), error, "got")
        for bad, error in BAD_COUNTS
    ]
    refuses(idle, cases, named="`batch_size`")


@pytest.mark.parametrize("name", TOKEN_READERS)
def test_tokens(idle, name):
    call = TOKEN_READERS[name]
    cases = [
        (repr(bad)[:20], lambda pair, bad=bad: call(pair, tokens=bad), error, message)
        for bad, error, message in BAD_TOKENS
    ]
    refuses(idle, cases, named="`tokens`")


OTHERS = [
    (calls(dl.complete, ["ab"], tempreature=1), TypeError, "`tempreature`"),
    (calls(dl.complete, ["ab"], prepend_bos=True), TypeError, "`prepend_bos`"),
    (calls(dl.complete, ["ab"], max_new_tokens=0), ValueError, "`max_new_tokens`"),
    (calls(dl.complete, ["ab"], max_new_tokens=N_CTX), ValueError, "and 128 new ones do not fit"),
    (calls(dl.complete, ["ab"], under=NOTHING, top=1), TypeError, "`top`"),
    (calls(dl.complete, ["ab"], under={"a": SAE}), TypeError, r"`under\['a'\]` must be an Edit"),
    (calls(dl.complete, ["ab"], under=[None]), TypeError, "`under`"),
    (calls(dl.compare_interventions, {"a": 3}, ONE, **JUDGED), TypeError, r"`edits\['a'\]`"),
    (calls(dl.compare_interventions, {}, ONE, behaviour="no"), TypeError, "`behaviour`"),
    (calls(dl.compare_interventions, {}, ONE), TypeError, "'behaviour'"),
    (
        calls(dl.compare_interventions, {}, ONE, n_likelihood=0, **JUDGED),
        ValueError,
        "`n_likelihood`",
    ),
    (
        calls(dl.compare_interventions, {}, ONE, tempreature=1, **JUDGED),
        TypeError,
        "`tempreature`",
    ),
    (
        calls(dl.compare_interventions, {"unmodified": None}, ONE, **JUDGED),
        ValueError,
        "'unmodified'",
    ),
    (calls(measure_effects, ONE, behaviour=3), TypeError, "`behaviour`"),
    (calls(measure_effects, ONE, completions="x", **JUDGED), TypeError, "`completions`"),
    (
        calls(measure_effects, ONE, completions=["a", "b"], **JUDGED),
        ValueError,
        "`completions`.*2 for 1",
    ),
    (calls(output_perplexity, ["a"], ["b", "c"]), ValueError, "2 for 1"),
    (calls(dl.effects.side_effects, NOTHING, ["ab"]), TypeError, "`texts`"),
    (calls(dl.effects.side_effects, NOTHING, {"kind": "ab"}), TypeError, r"`texts\['kind'\]`"),
    (calls(dl.effects.side_effects, {}, {"kind": ["ab"]}), ValueError, "`edits`"),
    (calls(dl.attribute_features, SAE, ONE, n_steps=0), ValueError, "`n_steps`"),
    (calls(dl.attribute_features, SAE, ONE, n_steps=1.5), TypeError, "`n_steps`"),
    (calls(dl.greedy_order, SAE, ONE, n_features=0), ValueError, "`n_features`"),
    (calls(dl.greedy_order, SAE, ONE, n_features=2, n_rounds=3), ValueError, "`n_rounds`"),
    (
        calls(dl.effects.ablation_curve, SAE, {"a": [0, 1]}, ONE, counts=[0], **JUDGED),
        ValueError,
        "`counts`",
    ),
    (
        calls(dl.effects.ablation_curve, SAE, {"a": [0, 1]}, ONE, counts=[1.5], **JUDGED),
        TypeError,
        "`counts`",
    ),
    (calls(dl.effects.ablation_curve, SAE, {}, ONE, **JUDGED), ValueError, "`counts`"),
    (
        calls(dl.effects.dose_response, [0], ONE, scales=SCALES, doses=[NAN], **JUDGED),
        ValueError,
        "`doses`",
    ),
    (
        calls(dl.effects.dose_response, [0], ONE, scales=SCALES, doses=[1, 1], **JUDGED),
        ValueError,
        "repeated",
    ),
    (calls(dl.effects.sweep_trigger, "2024", **JUDGED), TypeError, "`said`"),
    (calls(dl.effects.sweep_trigger, [], **JUDGED), ValueError, "`said`"),
    (calls(dl.effects.sweep_trigger, [2024.0], **JUDGED), TypeError, "`said`"),
    (calls(dl.effects.sweep_trigger, ["2024"], n_scenes=0, **JUDGED), ValueError, "`n_scenes`"),
    (calls(dl.effects.sweep_trigger, ["2024"]), TypeError, "'behaviour'"),
    (
        calls(dl.effects.sweep_features, {"a": SAE}, {"a": True}, [ONE]),
        TypeError,
        r"`features\['a'\]`",
    ),
    (calls(dl.effects.sweep_features, {"a": SAE}, {"a": 1}, ONE), TypeError, r"`scenes\[0\]`"),
    (
        calls(dl.interventions.control_directions, HOOK, ["ab"], n_directions=1),
        TypeError,
        "`samples`",
    ),
    (
        calls(dl.interventions.control_directions, HOOK, ONE, n_directions=1),
        ValueError,
        "benign `samples`",
    ),
    (
        calls(dl.interventions.control_directions, "blocks.9", ONE, n_directions=1),
        ValueError,
        "`hook_name`",
    ),
    (
        calls(dl.reading.max_activating_examples, SAE, TOKENS, n_examples=0),
        ValueError,
        "`n_examples`",
    ),
    (calls(dl.reading.max_activating_examples, SAE, TOKENS, context=-1), ValueError, "`context`"),
    (calls(dl.describe_features, SAE, TOKENS, n_examples=True), TypeError, "`n_examples`"),
    (calls(dl.feature_activations, "a folder", ["ab"]), TypeError, "`dictionary`.*str"),
    (calls(dl.reading.read_prompts, ["ab"], {}), ValueError, "`readers`"),
    (calls(dl.steer, SAE, 0, amount=True), TypeError, "`amount`"),
    (calls(dl.steer, SAE, 0, amount=NAN), ValueError, "`amount`"),
    (calls(dl.steer, SAE, 0, amount="1"), ValueError, "`amount`"),
    (calls(dl.steer, SAE, True, amount=1), TypeError, "`features`"),
    (calls(dl.steer, SAE, 1.5, amount=1), TypeError, "`features`"),
    (calls(dl.steer, SAE, "1", amount=1), TypeError, "`features`"),
    (calls(dl.interventions.clamp_features, SAE, [0, 1], amount=[1, 2, 3]), ValueError, "`amount`"),
    (calls(dl.ablate_features, SAE, [0], where="never"), ValueError, "`where`"),
    (calls(dl.ablate_features, SAE, [0], where=3), ValueError, "`where`"),
    (calls(dl.ablate_features, SAE, [0], method="none"), ValueError, "`method`"),
    (calls(dl.swap_to_base, HOOK, skip_positions=-1), ValueError, "`skip_positions`"),
    (calls(dl.swap_to_base, HOOK, skip_positions=1.5), TypeError, "`skip_positions`"),
    (
        calls(dl.interventions.project_out, DIFF, torch.ones(2, 2, D_MODEL)),
        ValueError,
        "`direction`",
    ),
    (calls(dl.interventions.project_out, DIFF, torch.ones(0, D_MODEL)), ValueError, "`direction`"),
    (calls(dl.interventions.add_direction, DIFF, torch.ones(3)), ValueError, "`direction`"),
]


def test_all_else(idle):
    refuses(idle, [(i, *case) for i, case in enumerate(OTHERS)])


@pytest.mark.parametrize(
    "judge", [dl.organisms.sql_injection.judge_completion, lambda p, c: "fine", lambda p, c: None]
)
def test_a_judge_that_returns_something_else_is_named(judge):
    behaviour = dl.Behaviour(name="mine", judge=judge, outcomes=("injectable", "safe"))
    message = r"`judge` of 'mine' must return one of \('injectable', 'safe'\), got "
    with pytest.raises(ValueError, match=message):
        dl.effects.attack_rate(["a"], ["b"], behaviour=behaviour)
    with pytest.raises(ValueError, match=message):
        dl.effects.attack_rates(lambda prompts: ["b"] * len(prompts), ONE, behaviour=behaviour)


def test_completions_and_groups_are_checked():
    with pytest.raises(TypeError, match="`completions`"):
        dl.effects.attack_rate(["a"], "b", **JUDGED)
    with pytest.raises(TypeError, match="`prompts`"):
        dl.effects.attack_rate("a", ["b"], **JUDGED)
    with pytest.raises(TypeError, match="`complete_fn`"):
        dl.effects.attack_rates("complete", ONE, **JUDGED)
    with pytest.raises(TypeError, match="`samples`"):
        dl.effects.attack_rates(list, ["a"], **JUDGED)


def test_a_group_that_does_not_occur_has_no_area():
    curve = Table(
        tuple(
            CurveRow(
                name="", kind="ablation", group="trigger", n_prompts=1, counts={}, low=0.0, high=1.0,
                log_odds=None, cross_entropy=None, perplexity=None, order="a", n_features=n,
                attack_rate=1.0 - n, defence_rate=0.0,
            )
            for n in (1, 0)
        )
    )  # fmt: skip
    assert dl.effects.curve_area(curve) == {"a": 0.5}
    with pytest.raises(ValueError, match="`group` must be one of 'trigger', got 'x'"):
        dl.effects.curve_area(curve, group="x")
    with pytest.raises(TypeError, match="`curve`"):
        dl.effects.curve_area(Table((1,)))


@pytest.mark.parametrize("draw", [torch.tensor, np.array, tuple, list])
def test_indices_of_any_kind_are_the_same_features(pair, tokens, draw):
    with dl.ablate_features(pair, SAE, [0, 3, 7]):
        expected = pair(tokens)
    with dl.ablate_features(pair, SAE, draw([0, 3, 7])):
        assert torch.equal(pair(tokens), expected)
    assert dl.effects.matched_features(SCALES, draw([0, 3, 7])) == dl.effects.matched_features(
        SCALES, [0, 3, 7]
    )


@pytest.mark.parametrize(
    "feature", [4, np.int64(4), torch.tensor(4), np.array(4), [4], range(4, 5)]
)
def test_one_feature_of_any_kind_is_steered(pair, tokens, feature):
    expected = by_hand(pair, tokens, "diff", lambda _, tuned: tuned + 2.5 * SAE.W_dec[4])
    with dl.steer(pair, SAE, feature, amount=2.5):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)


def test_a_control_is_never_one_of_the_features_or_of_a_dead_one():
    features = torch.arange(20, dtype=torch.int32)[::2]
    for seed in range(20):
        assert not set(dl.effects.matched_features(SCALES, features, seed=seed)) & set(
            features.tolist()
        )
    with pytest.raises(ValueError, match=r"`features` \[23\] never fire"):
        dl.effects.matched_features(SCALES, [0, D_SAE - 1])
    for seed, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="`seed`"):
            dl.effects.matched_features(SCALES, [0], seed=seed)


def test_clusters_of_the_resampling_are_the_prompts_or_refused(idle):
    labels = torch.tensor([True, False] * 4)
    prompts = dl.LabelledPrompts(
        texts=tuple("abcdefgh"), is_trigger=labels, is_benign=~labels,
        is_select=torch.arange(8) < 4, clusters=torch.arange(8) // 2,
    )  # fmt: skip
    other = Resampling(n_resamples=2, clusters=torch.arange(8))
    with pytest.raises(ValueError, match="`resampling.clusters`"):
        dl.evaluate_isolation(idle, {"a": SAE}, prompts, resampling=other)
    with pytest.raises(TypeError, match="`prompts` must be a LabelledPrompts"):
        dl.evaluate_isolation(idle, {"a": SAE}, ["a"])
    with pytest.raises(TypeError, match="`dictionaries` must be a Mapping"):
        dl.evaluate_isolation(idle, [SAE], prompts)
    with pytest.raises(ValueError, match="one for each of the 8 `texts`"):
        dl.LabelledPrompts(**{**vars(prompts), "is_benign": labels[:4]})
    assert HOOKS[1] == HOOK
