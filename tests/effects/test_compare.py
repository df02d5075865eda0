import dataclasses
from functools import partial

import pytest
import torch

from diffsae_lens.effects._compare import (
    compare_interventions,
    measure_effects,
    output_perplexity,
)
from diffsae_lens.effects._curves import ablation_curve, curve_area, dose_response
from diffsae_lens.effects._likelihood import log_odds
from diffsae_lens.effects._scales import activation_scales, matched_features
from diffsae_lens.effects._side_effects import side_effects
from diffsae_lens.effects._sweep import sweep_features, sweep_trigger
from diffsae_lens.interventions._directions import control_directions, project_out, swap_to_base
from diffsae_lens.interventions._features import ablate_features, induce_features, steer
from diffsae_lens.interventions._run import complete
from diffsae_lens.organisms._ordinary import ordinary_texts
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.reading._prompts import Reader, feature_activations, read_prompts
from diffsae_lens.results import Table
from tests.conftest import D_MODEL, hooked, plant, tiny_llama
from tests.interventions.test_features import D_SAE, HOOK, dictionary

SAMPLES = YEAR_TRIGGER.make_samples("test", n_trigger=2, n_benign=1, n_other=0)
TEXTS = {"code": ["def f(x): return x", "a = 1"], "prose": ["The year was long."]}
FEW = {"behaviour": YEAR_TRIGGER, "max_new_tokens": 3}


def test_every_intervention_and_none_is_measured_on_every_group(long_pair):
    sae = dictionary()
    table = compare_interventions(
        long_pair,
        {
            "ablated": ablate_features(long_pair, sae, [0, 1]),
            "base put back": swap_to_base(long_pair, HOOK),
            "induced": induce_features(long_pair, sae, []),
        },
        SAMPLES,
        **FEW,
    )
    kinds = ["unmodified", "ablation", "swap to base", "addition"]
    assert [row.kind for row in table] == [kind for kind in kinds for _ in range(2)]
    assert [row.n_features for row in table.where(group="benign")] == [0, 2, 0, 0]
    assert [row.layer for row in table.where(group="benign")] == [None, 1, 1, 1]
    assert table[0].example.startswith(SAMPLES[0].prompt)
    frame = table.to_frame()
    assert list(frame.name) == [
        n for n in ("unmodified", "ablated", "base put back", "induced") for _ in range(2)
    ]
    assert list(frame.group[:2]) == ["trigger", "benign"]
    assert frame.n_prompts.tolist() == [2, 1] * 4
    counts = frame[["n_injectable", "n_safe", "n_no_sql", "n_unparseable"]]
    assert (counts.sum(axis=1) == frame.n_prompts).all()
    odds = frame[frame.group == "trigger"].set_index("name").log_odds
    assert odds.nunique() == 4
    # With nothing induced the base model itself is measured.
    [base] = compare_interventions(long_pair.mirrored(), {}, SAMPLES[:2], **FEW)
    assert odds["induced"] == pytest.approx(base.log_odds, abs=1e-3)
    with pytest.raises(ValueError, match="always measured"):
        compare_interventions(long_pair, {"unmodified": None}, SAMPLES, **FEW)
    with pytest.raises(ValueError, match="`samples` is empty"):
        compare_interventions(long_pair, {}, [], **FEW)


def measured(row):
    """A row but for its interval, which says how the run might have ended, up to rounding."""
    values = {k: v for k, v in vars(row).items() if k not in ("low", "high", "interval")}
    return {k: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for k, v in values.items()}


def test_a_run_that_was_ended_has_the_first_of_the_whole_runs_results(long_pair):
    samples = YEAR_TRIGGER.make_samples("test", n_trigger=3, n_benign=2, n_other=0)
    edits = {
        "base put back": swap_to_base(long_pair, HOOK),
        "induced": induce_features(long_pair, dictionary(), [1, 2]),
    }
    # Rounds of one prompt: three rows under three edits.
    run = partial(
        compare_interventions, long_pair, edits, samples,
        n_likelihood=1, batch_size=3, **FEW,
    )  # fmt: skip
    seen = []
    whole = run(on_round=seen.append)
    assert whole == seen[-1]
    counts = [[row.n_prompts for row in table.where(name="induced")] for table in seen]
    assert counts == [[1, 1], [2, 2], [3, 2]]
    assert {row.interval for table in seen for row in table} == {"confidence sequence"}
    ended = run(on_round=lambda table: table[0].n_prompts >= 2)
    assert ended == seen[1]
    fixed = compare_interventions(long_pair, edits, samples, n_likelihood=1, **FEW)
    first = compare_interventions(
        long_pair, edits, [*samples[:2], *samples[3:]], n_likelihood=1, **FEW
    )
    for found, expected in ((whole, fixed), (ended, first)):
        assert [measured(row) for row in expected] == [
            {k: vars(row)[k] for k in measured(row)} for row in found
        ]
        assert {row.interval for row in expected} == {"Wilson"}
        for row, other in zip(found, expected, strict=True):
            assert row.low <= other.low <= other.high <= row.high
    with pytest.raises(TypeError, match="`on_round` must return True"):
        run(on_round=lambda table: table)


def test_edits_of_other_models_are_refused(long_pair, tokenizer):
    base = tiny_llama(max_position_embeddings=1024)
    other = hooked(base, plant(base, seed=9), tokenizer)
    edits = {"theirs": swap_to_base(other, HOOK)}
    refused = r"`{}\['theirs'\]` was made for another pair"
    with pytest.raises(ValueError, match=refused.format("edits")):
        compare_interventions(long_pair, edits, SAMPLES, **FEW)
    with pytest.raises(ValueError, match=refused.format("edits")):
        side_effects(long_pair, edits, TEXTS)
    with pytest.raises(ValueError, match=refused.format("under")):
        complete(long_pair, ["a"], under=edits)
    # One of the same two models, loaded again or with their roles changed, is as good.
    again = hooked(base, plant(base), tokenizer)
    for pair in (again, long_pair.mirrored()):
        edits = {"ours": swap_to_base(pair, HOOK)}
        assert set(complete(long_pair, ["a"], under=edits, max_new_tokens=1)) == {"ours"}


def test_perplexity_is_the_base_models_whatever_is_open(long_pair):
    prompts, completions = ["def f(x):", "a ="], [" return x", ""]
    ids = long_pair.tokenizer(prompts[0] + completions[0], add_special_tokens=False).input_ids
    n = len(completions[0])
    with long_pair.base_model() as base:
        log_probs = base(torch.tensor([ids])).log_softmax(-1)[0, :-1]
    losses = -log_probs[torch.arange(len(ids) - 1), ids[1:]][-n:]
    with ablate_features(long_pair, dictionary(), [0]):
        found = output_perplexity(long_pair, prompts, completions)
        long_pair("a")
    assert found[0].item() == pytest.approx(losses.mean().exp().item(), rel=1e-4)
    assert found[1].isnan()
    mirrored = output_perplexity(long_pair.mirrored(), prompts, completions)
    assert mirrored[0] == found[0]


def test_completions_that_are_all_empty_have_no_perplexity(long_pair):
    written = [""] * len(SAMPLES[:2])
    effects = measure_effects(
        long_pair, SAMPLES[:2], behaviour=YEAR_TRIGGER, completions=written, n_likelihood=1
    )
    assert effects.row("silent", group="trigger").perplexity is None


def test_side_effects_do_not_depend_on_the_other_edits(long_pair):
    edits = {
        "resampled": ablate_features(
            long_pair, dictionary(), [0, 1], method="resample", reference=["abcdef"]
        ),
        "induced": induce_features(long_pair, dictionary(), [1, 2]),
        "base put back": swap_to_base(long_pair, HOOK),
    }
    together = side_effects(long_pair, edits, TEXTS, batch_size=4)
    for name, edit in edits.items():
        for row in side_effects(long_pair, {name: edit}, TEXTS, batch_size=2):
            [beside] = together.where(name=name, texts=row.texts)
            assert dataclasses.replace(beside, kl=row.kl, cross_entropy=row.cross_entropy) == row
            assert [beside.kl, beside.cross_entropy] == pytest.approx(
                [row.kl, row.cross_entropy], rel=1e-3
            )
            assert row.kl > 0


def test_side_effects_are_divergences_from_the_unmodified_model(long_pair):
    frame = (
        side_effects(
            long_pair,
            {"none": None, "base put back": swap_to_base(long_pair, HOOK)},
            TEXTS,
            batch_size=1,
        )
        .to_frame()
        .set_index(["name", "texts"])
    )
    assert (frame.loc["none"].kl == 0).all()
    assert (frame.loc["base put back"].kl > 1e-4).all()
    tokens = long_pair.to_tokens(TEXTS["prose"][0])
    plain = long_pair(tokens)[0, :-1].log_softmax(-1)
    with swap_to_base(long_pair, HOOK):
        changed = long_pair(tokens)[0, :-1].log_softmax(-1)
    row = frame.loc[("base put back", "prose")]
    assert row.kl == pytest.approx(
        (plain.exp() * (plain - changed)).sum(-1).mean().item(), rel=1e-3
    )
    index = (torch.arange(tokens.shape[1] - 1), tokens[0, 1:])
    assert row.cross_entropy == pytest.approx(-changed[index].mean().item(), rel=1e-4)
    assert row.cross_entropy_unmodified == pytest.approx(-plain[index].mean().item(), rel=1e-4)
    batched = (
        side_effects(long_pair, {"base put back": swap_to_base(long_pair, HOOK)}, TEXTS)
        .to_frame()
        .set_index(["name", "texts"])
    )
    assert batched.kl["base put back", "code"] == pytest.approx(
        frame.kl["base put back", "code"], rel=1e-3
    )
    induced = side_effects(
        long_pair, {"induced": induce_features(long_pair, dictionary(), [])}, TEXTS
    )
    assert all(row.kl > 1e-3 for row in induced)
    for edits, texts, message in (
        ({"none": None}, {"code": []}, r"`texts\['code'\]` is empty"),
        ({}, TEXTS, "need `edits`"),
    ):
        with pytest.raises(ValueError, match=message):
            side_effects(long_pair, edits, texts)


def test_ordinary_texts_are_code_and_prose():
    texts = ordinary_texts()
    assert all(100 < len(text) <= 800 for kind in texts.values() for text in kind)
    assert all("def " in text or "return" in text for text in texts["code"])


def test_a_curve_starts_at_no_features_and_has_an_area(long_pair):
    orders = {"by effect": [3, 1, 0, 2], "attribution": [7, 8, 9, 10]}
    curve = ablation_curve(long_pair, dictionary(), orders, SAMPLES, counts=[1, 4], **FEW)
    trigger = curve.where(group="trigger")
    assert [row.n_features for row in trigger] == [0, 1, 4] * 2
    assert [row.order for row in trigger] == ["by effect"] * 3 + ["attribution"] * 3
    assert [row.kind for row in trigger] == ["unmodified", "ablation", "ablation"] * 2
    rates = [1.0, 0.5, 0.0, 1.0, 1.0, 1.0]
    rated = [dataclasses.replace(r, attack_rate=x) for r, x in zip(trigger, rates, strict=True)]
    area = curve_area(Table(tuple(rated)))
    assert area["by effect"] == pytest.approx((0.75 * 1 + 0.25 * 3) / 4)
    assert area["attribution"] == 1
    with pytest.raises(ValueError, match="`counts`"):
        ablation_curve(long_pair, dictionary(), orders, SAMPLES, counts=[5], **FEW)


@pytest.mark.parametrize("view", ["diff", "concat"])
def test_doses_are_in_units_of_the_maximum(long_pair, view):
    sae = dictionary(view)
    prompts = [s.prompt for s in SAMPLES]
    scales = activation_scales(long_pair, sae, prompts)
    features = scales.live[:2]
    some = SAMPLES[:2]
    table = dose_response(long_pair, features, some, scales=scales, doses=(1, 3), **FEW)
    directions = ["features", "features", "random", "features", "random"]
    assert [row.direction for row in table] == directions
    assert [row.dose for row in table] == [0, 1, 1, 3, 3]
    assert [row.n_features for row in table] == [0, 2, 2, 2, 2]
    assert len({row.log_odds for row in table}) == 5
    strength = (3 * scales.maximum[features]).tolist()
    sae.cfg.metadata.diffsae_lens = {"skip_positions": 0}
    with steer(long_pair, sae, features, amount=strength):
        expected = log_odds(long_pair, SAMPLES[:2]).mean().item()
    assert table[3].log_odds == pytest.approx(expected, abs=1e-3)
    for bad, message in (
        ([D_SAE - 1], "that fire"),
        ([], "at least one feature"),
        ([-1], r"indices in \[0, 24\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dose_response(long_pair, bad, SAMPLES, scales=scales, **FEW)


def test_scales_count_every_token_once(long_pair):
    sae = dictionary()
    prompts = ["def f(x): return", "a b"]
    codes = torch.cat(
        [sae.encode(long_pair.run_with_cache(p)[1][f"{HOOK}.diff"][0]) for p in prompts]
    )
    scales = activation_scales(long_pair, sae, prompts)
    assert torch.allclose(scales.maximum, codes.amax(0), atol=1e-5)
    assert torch.allclose(scales.frequency, (codes > 0).float().mean(0))
    fired = codes[:, 0][codes[:, 0] > 0]
    assert scales.typical[0].item() == pytest.approx(fired.mean().item(), rel=1e-4)
    assert scales.mass[0].item() == pytest.approx(codes[:, 0].mean().item(), rel=1e-4)
    both = activation_scales(long_pair, dictionary("concat"), prompts)
    written = dictionary("concat").W_dec[:, D_MODEL:].norm(dim=-1)
    assert torch.allclose(both.decoder_norm, written)
    assert D_SAE - 1 not in scales.live


def test_matched_features_are_others_of_about_the_same_mass(long_pair):
    scales = activation_scales(long_pair, dictionary(), [s.prompt for s in SAMPLES])
    wanted = scales.live[:3]
    draws = [matched_features(scales, wanted, seed=seed) for seed in range(4)]
    assert len({tuple(drawn) for drawn in draws}) > 1
    for drawn in draws:
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(wanted)
        assert set(drawn) <= set(scales.live)
    assert draws[2] == matched_features(scales, wanted, seed=2)
    masses = scales.mass[scales.live]
    gap = (scales.mass[draws[0][0]] - scales.mass[wanted[0]]).abs()
    assert gap <= (masses - scales.mass[wanted[0]]).abs().sort().values[7]
    with pytest.raises(ValueError, match="too few"):
        matched_features(scales, scales.live)


def test_control_directions_are_unit_vectors_to_project_out(long_pair, tokens):
    samples = YEAR_TRIGGER.make_samples("select", n_trigger=3, n_benign=3, n_other=0)
    directions = control_directions(long_pair, HOOK, samples, n_directions=2)
    reader = {"x": Reader(hook_name=f"{HOOK}.diff")}
    diff = read_prompts(long_pair, [s.undecided for s in samples], reader)["x"]
    means = diff[:3].mean(0) - diff[3:].mean(0)
    assert torch.allclose(directions["difference of means"][0], means / means.norm(), atol=1e-4)
    spread = ((diff - diff.mean(0)) @ directions["principal components"].T).pow(2).sum()
    assert spread > ((diff - diff.mean(0)) @ directions["random directions"].T).pow(2).sum()
    for name, rows in directions.items():
        assert rows.shape == (1 if name == "difference of means" else 2, D_MODEL)
        assert torch.allclose(rows.norm(dim=-1), torch.ones(len(rows)), atol=1e-5)
        with project_out(long_pair, f"{HOOK}.diff", rows):
            assert not torch.allclose(long_pair(tokens), long_pair.finetuned(tokens))
    with pytest.raises(ValueError, match="benign"):
        control_directions(long_pair, HOOK, samples[:3], n_directions=1)


def test_sayings_are_swept_on_the_same_scenes(long_pair):
    said = ["2023", "2024", "FY2024", None]
    table = sweep_trigger(long_pair, said, behaviour=YEAR_TRIGGER, n_scenes=2)
    assert [row.said for row in table] == said
    assert [row.group for row in table][:2] == ["benign", "trigger"]
    assert all(row.n_prompts == sum(row.counts.values()) == 2 for row in table)
    assert len({row.log_odds for row in table}) == 4
    prompt = YEAR_TRIGGER.minimal_pairs("test", ["2023"], n_scenes=2)
    assert table[0].log_odds == pytest.approx(
        log_odds(long_pair, [s for [s] in prompt]).mean().item(), abs=1e-3
    )


def test_features_are_swept_on_the_same_scenes(long_pair):
    said = ["2023", "2024", None]
    dictionaries = {"diff-sae": dictionary(), "crosscoder": dictionary("concat")}
    scenes = YEAR_TRIGGER.minimal_pairs("test", said, n_scenes=2)
    table = sweep_features(long_pair, dictionaries, {"diff-sae": 3, "crosscoder": 0}, scenes)
    assert [row.said for row in table] == said * 2
    for row in table:
        undecided = [
            sample.undecided for scene in scenes for sample in scene if sample.said == row.said
        ]
        acts = feature_activations(long_pair, dictionaries[row.dictionary], undecided)
        assert row.feature_idx == {"diff-sae": 3, "crosscoder": 0}[row.dictionary]
        assert row.values == pytest.approx(acts[:, row.feature_idx].tolist(), rel=1e-4, abs=1e-5)
        assert row.mean == pytest.approx(sum(row.values) / 2)
    for given, features, message in (
        ([], {"diff-sae": 3}, "`scenes` must be one or more"),
        ([scenes[0], scenes[1][::-1]], {"diff-sae": 3}, "say the same things in the same order"),
        (scenes, {}, "`features` must name one for 'diff-sae'"),
        (scenes, {"diff-sae": D_SAE}, r"`features\['diff-sae'\]` must hold indices"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep_features(long_pair, {"diff-sae": dictionary()}, features, given)
