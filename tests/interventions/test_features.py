import contextlib

import pytest
import torch
from sae_lens import SAE
from torch.testing import assert_close

from diffsae_lens.interventions._directions import (
    add_direction,
    perturb,
    project_out,
    swap_to_base,
)
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.interventions._features import (
    ablate_features,
    clamp_features,
    induce_features,
    keep_only_features,
    steer,
)
from diffsae_lens.interventions._run import complete
from tests.conftest import D_MODEL, HOOKS

HOOK = HOOKS[1]
D_SAE = 24


def dictionary(view="diff", d_sae=D_SAE) -> SAE:
    d_in = 2 * D_MODEL if view == "concat" else D_MODEL
    sae = SAE.from_dict({
        "architecture": "jumprelu", "d_in": d_in, "d_sae": d_sae, "dtype": "float32",
        "device": "cpu", "metadata": {"hook_name": f"{HOOK}.{view}"},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.data = torch.randn(d_in, d_sae, generator=generator)
    sae.W_dec.data = torch.nn.functional.normalize(
        torch.randn(d_sae, d_in, generator=generator), dim=1
    )
    sae.b_enc.data[-1] = -1e6  # the last feature never fires
    return sae


def by_hand(pair, tokens, view, edit):
    """The expected logits: the fine-tuned model alone, its activation edited outside the pair."""
    _, cache = pair.run_with_cache(tokens)
    new = edit(cache[f"{HOOK}.{view}"], cache[f"{HOOK}.finetuned"])
    return pair.finetuned.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: new)])


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_ablation_takes_the_features_contribution_out_of_the_finetuned_model(pair, tokens, view):
    sae, features = dictionary(view), [0, 3, 7]

    def edit(value, finetuned):
        codes = sae.encode(value)[..., features]
        return finetuned - (codes @ sae.W_dec[features])[..., -D_MODEL:]

    expected = by_hand(pair, tokens, view, edit)
    with ablate_features(pair, sae, features) as acted:
        ablated = pair(tokens)
    assert_close(ablated, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ablated, pair(tokens), atol=1e-3)
    assert acted.n_forward_passes == 1
    assert torch.equal(pair(tokens), pair.finetuned(tokens))


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_ablating_nothing_that_fires_is_the_exact_identity(pair, tokens, view):
    plain = pair(tokens)
    for features in ([], [D_SAE - 1]):
        with ablate_features(pair, dictionary(view), features):
            assert torch.equal(pair(tokens), plain)


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_steering_adds_the_direction(pair, tokens, view):
    sae = dictionary(view)
    expected = by_hand(
        pair, tokens, view, lambda _, finetuned: finetuned + 2.5 * sae.W_dec[4, -D_MODEL:]
    )
    with steer(pair, sae, 4, amount=2.5):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with steer(pair, sae, [4, 9], amount=[2.5, 0.0]):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)


def test_zero_strength_is_the_exact_identity(pair, tokens):
    with steer(pair, dictionary(), [1, 2], amount=0.0):
        assert torch.equal(pair(tokens), pair.finetuned(tokens))


def test_swap_to_base_equals_patching_the_base_in(pair, tokens):
    expected = by_hand(pair, tokens, "base", lambda base, _: base)
    with swap_to_base(pair, HOOK):
        assert torch.equal(pair(tokens), expected)


def test_interventions_act_at_every_generated_token(pair, tokens):
    with ablate_features(pair, dictionary(), range(D_SAE - 1)) as acted:
        pair.generate(tokens, max_new_tokens=4, stop_at_eos=False)
    assert acted.n_forward_passes == 4


def test_an_edit_is_a_value_that_is_opened_again_and_inside_itself(pair, tokens):
    edit = ablate_features(pair, dictionary(), [0, 3])
    plain = pair(tokens)
    with edit as first:
        once = pair(tokens)
    with edit as outer:
        assert torch.equal(pair(tokens), once)
        with edit as inner:
            twice = pair(tokens)
        assert torch.equal(pair(tokens), once)
    with ablate_features(pair, dictionary(), [0, 3]), ablate_features(pair, dictionary(), [0, 3]):
        assert torch.equal(pair(tokens), twice)
    assert torch.equal(pair(tokens), plain)
    assert [acted.n_forward_passes for acted in (first, outer, inner)] == [1, 3, 1]
    assert not any(point.has_hooks() for point in pair.hook_dict.values())
    with pytest.raises(KeyError, match="mine"), edit:
        raise KeyError("mine")
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_an_edit_says_what_it_is(pair):
    direction = torch.ones(D_MODEL)
    for edit, expected in (
        (ablate_features(pair, dictionary(), [0, 3]), ("ablation", 2, "diff")),
        (keep_only_features(pair, dictionary("concat"), [0]), ("addition", 1, "concat")),
        (induce_features(pair, dictionary(), [0]), ("addition", 1, "diff")),
        (clamp_features(pair, dictionary(), [0], amount=1), ("other", 1, "diff")),
        (steer(pair, dictionary("finetuned"), 4, amount=1), ("steering", 1, "finetuned")),
        (swap_to_base(pair, HOOK), ("swap to base", 0, "diff")),
        (project_out(pair, f"{HOOK}.diff", direction), ("projection", 1, "diff")),
        (add_direction(pair, f"{HOOK}.base", direction), ("steering", 0, "base")),
    ):
        assert (edit.kind, edit.n_features, edit.hook.rpartition(".")[2]) == expected
        assert edit.layer == 1
        assert (edit.pair is pair) == (edit.pair.is_mirrored is False)


def test_an_edit_of_ones_own(pair, tokens):
    edit = Edit(pair=pair, hook=f"{HOOK}.diff", change=lambda value, _: 0 * value)
    with swap_to_base(pair, HOOK):
        expected = pair(tokens)
    with edit as acted:
        assert torch.equal(pair(tokens), expected)
    assert acted.n_changes == 1
    with pytest.raises(ValueError, match="is not a hook point of this pair"):
        Edit(pair=pair, hook=HOOK, change=lambda value, _: value)


def test_random_activations_are_the_same_each_time(pair, tokens):
    edit = ablate_features(pair, dictionary(), [0, 1], method="resample", reference=["abcdef"])
    with edit:
        first, second = pair(tokens), pair(tokens)
    with edit:
        assert torch.equal(pair(tokens), first)
        assert torch.equal(pair(tokens), second)
    assert not torch.equal(first, second)


def test_interventions_nest(pair, tokens):
    sae = dictionary()
    with ablate_features(pair, sae, [0]), ablate_features(pair, sae, [3]):
        nested = pair(tokens)
    with ablate_features(pair, sae, [0]):
        outer = pair(tokens)
    assert not torch.equal(nested, outer)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_an_intervention_that_never_acted_is_an_error(pair, tokens):
    with (
        pytest.raises(RuntimeError, match="never acted"),
        ablate_features(pair, dictionary(), [0]),
    ):
        pair.finetuned(tokens)
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


def test_an_error_inside_keeps_its_name_and_removes_the_hooks(pair):
    with pytest.raises(KeyError, match="mine"), ablate_features(pair, dictionary(), [0]):
        raise KeyError("mine")
    assert not any(point.has_hooks() for point in pair.hook_dict.values())


@pytest.mark.parametrize(
    ("features", "message"),
    [([D_SAE], r"\[0, 24\)"), ([-1], r"\[0, 24\)"), ([1, 1], "repeated")],
)
def test_bad_features_are_refused(pair, features, message):
    with pytest.raises(ValueError, match=message), ablate_features(pair, dictionary(), features):
        pass


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), [1.0, 2.0, 3.0]])
def test_bad_strengths_are_refused(pair, strength):
    with (
        pytest.raises(ValueError, match="`amount`"),
        steer(pair, dictionary(), [0, 1], amount=strength),
    ):
        pass


def test_a_dictionary_of_another_hook_is_refused(pair):
    sae = dictionary()
    sae.cfg.metadata.hook_name = "blocks.7.hook_resid_post.diff"
    with (
        pytest.raises(ValueError, match="is not a hook point of this pair"),
        steer(pair, sae, 0, amount=1.0),
    ):
        pass
    with (
        pytest.raises(ValueError, match="is not a hook point of this pair"),
        swap_to_base(pair, "blocks.7"),
    ):
        pass


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_clamping_holds_features_at_their_values(pair, tokens, view):
    sae, features, values = dictionary(view), [0, 3, 7], [0.5, 0.0, 2.0]

    def edit(value, finetuned):
        change = torch.tensor(values) - sae.encode(value)[..., features]
        return finetuned + (change @ sae.W_dec[features])[..., -D_MODEL:]

    expected = by_hand(pair, tokens, view, edit)
    with clamp_features(pair, sae, features, amount=values):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with ablate_features(pair, sae, features):
        ablated = pair(tokens)
    with clamp_features(pair, sae, features, amount=0):
        assert_close(pair(tokens), ablated, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("view", ["diff", "concat"])
def test_keeping_features_is_the_base_with_what_they_add(pair, tokens, view):
    sae, features = dictionary(view), [0, 3, 7]
    _, cache = pair.run_with_cache(tokens)
    codes = sae.encode(cache[f"{HOOK}.{view}"])[..., features]
    W_dec = sae.W_dec[features]
    added = codes @ (W_dec if view == "diff" else W_dec[:, D_MODEL:] - W_dec[:, :D_MODEL])
    expected = by_hand(pair, tokens, "base", lambda base, _: base + added)
    with keep_only_features(pair, sae, features):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with swap_to_base(pair, HOOK):
        base = pair(tokens)
    with keep_only_features(pair, sae, []):
        assert_close(pair(tokens), base, atol=1e-5, rtol=1e-4)


def test_keeping_features_of_one_model_is_refused(pair):
    with (
        pytest.raises(ValueError, match="must read both models"),
        keep_only_features(pair, dictionary("finetuned"), [0]),
    ):
        pass


def test_projecting_out_leaves_nothing_along_the_directions(pair, tokens):
    directions = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(1))
    seen = []
    with project_out(pair, f"{HOOK}.diff", directions):
        expected_logits = pair(tokens)
        with pair.hooks(fwd_hooks=[(f"{HOOK}.diff", lambda v, hook: seen.append(v))]):
            pair(tokens)
    along = seen[0] @ directions.T
    assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)
    basis = torch.linalg.qr(directions.T).Q

    def edit(diff, finetuned):
        return finetuned - (diff @ basis) @ basis.T

    assert_close(expected_logits, by_hand(pair, tokens, "diff", edit), atol=1e-5, rtol=1e-4)
    twice = torch.stack([directions[0], 2 * directions[0]])
    with project_out(pair, f"{HOOK}.diff", directions[0]):
        once = pair(tokens)
    with project_out(pair, f"{HOOK}.diff", twice):
        assert_close(pair(tokens), once, atol=1e-5, rtol=1e-4)
    for bad in (torch.zeros(D_MODEL), torch.ones(3), torch.full((D_MODEL,), float("nan"))):
        with (
            pytest.raises(ValueError, match="`direction` must be"),
            project_out(pair, f"{HOOK}.diff", bad),
        ):
            pass


def test_prompt_and_generated_tokens_are_acted_on_apart(pair):
    sae = dictionary()
    acted = {}
    for where in ("all", "prompt", "generated"):
        with steer(pair, sae, 0, amount=5.0, where=where) as acted[where]:
            pair.generate("a prompt", max_new_tokens=4, stop_at_eos=False)
    assert acted["all"].n_forward_passes == 4
    assert acted["prompt"].n_forward_passes == 1
    assert acted["generated"].n_forward_passes == 3
    with pytest.raises((ValueError, TypeError)), steer(pair, sae, 0, amount=1.0, where="never"):
        pass


def test_leading_tokens_the_dictionary_was_not_trained_on_are_left_alone(pair):
    sae = dictionary()
    sae.cfg.metadata.diffsae_lens = {"skip_positions": 1}
    seen = []

    def look(value, hook):
        seen.append(value)

    prompts = ["a", "a longer prompt"]  # padded on the left: their first tokens are apart
    hooks = [(f"{HOOK}.diff", look)]
    with pair.hooks(fwd_hooks=hooks):
        pair.generate(prompts, max_new_tokens=1)
    with steer(pair, sae, 0, amount=5.0), pair.hooks(fwd_hooks=hooks):
        pair.generate(prompts, max_new_tokens=1)
    plain, steered = seen
    changed = (plain - steered).abs().amax(-1) > 1e-4
    lengths = [len(p) for p in prompts]
    width = max(lengths)
    for row, length in zip(changed, lengths, strict=True):
        first = width - length
        assert not row[: first + 1].any()
        assert row[first + 1 :].all()


@pytest.mark.parametrize("view", ["diff", "concat", "finetuned"])
def test_mean_ablation_holds_features_at_their_mean_over_the_reference(pair, tokens, view):
    sae, features = dictionary(view), [2, 5]
    reference = ["def f(x):", "return y"]
    seen = [pair.run_with_cache(text)[1][f"{HOOK}.{view}"][0] for text in reference]
    mean = sae.encode(torch.cat(seen))[:, features].mean(0)

    def edit(value, finetuned):
        change = mean - sae.encode(value)[..., features]
        return finetuned + (change @ sae.W_dec[features])[..., -D_MODEL:]

    expected = by_hand(pair, tokens, view, edit)
    with ablate_features(pair, sae, features, method="mean", reference=reference):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)


def test_resample_ablation_takes_activations_from_tokens_of_the_reference(pair, tokens):
    sae, features = dictionary(), [0, 1, 2, 3]
    [seen] = pair.run_with_cache("abcdef")[1][f"{HOOK}.diff"]
    rows = sae.encode(seen)[:, features]
    written = {}

    def keep(value, hook):
        written["codes"] = value

    plain = sae.encode(pair.run_with_cache(tokens)[1][f"{HOOK}.diff"])[..., features]
    base = pair.run_with_cache(tokens)[1][f"{HOOK}.diff"]
    with (
        ablate_features(pair, sae, features, method="resample", reference=["abcdef"]),
        pair.hooks(fwd_hooks=[(f"{HOOK}.diff", keep)]),
    ):
        pair(tokens)
    change = torch.linalg.lstsq(sae.W_dec[features].T, (written["codes"] - base).flatten(0, 1).T)
    new = plain.flatten(0, 1) + change.solution.T
    chosen = [(rows - row).abs().amax(1).argmin().item() for row in new]
    assert_close(rows[chosen], new, atol=1e-3, rtol=1e-3)
    assert len(set(chosen)) > 2


def test_a_function_of_the_tokens_names_the_positions(pair, tokens):
    sae, wanted = dictionary(), tokens[1, 4].item()
    written = {}

    def keep(value, hook):
        written["value"] = value

    plain = pair.run_with_cache(tokens)[1][f"{HOOK}.diff"]
    with (
        ablate_features(pair, sae, list(range(D_SAE - 1)), where=lambda t: t == wanted),
        pair.hooks(fwd_hooks=[(f"{HOOK}.diff", keep)]),
    ):
        pair(tokens)
    assert torch.equal((written["value"] != plain).any(-1), tokens == wanted)


def test_prompt_and_completion_are_told_apart_in_one_pass(pair, tokens):
    sae = dictionary()
    is_prompt = torch.zeros(tokens.shape, dtype=torch.bool)
    is_prompt[0, :3] = is_prompt[1, :5] = True
    written = {}

    def keep(value, hook):
        written["value"] = value

    plain = pair.run_with_cache(tokens)[1][f"{HOOK}.diff"]
    for where, expected in (("prompt", is_prompt), ("generated", ~is_prompt)):
        with (
            ablate_features(pair, sae, list(range(D_SAE - 1)), where=where),
            pair.hooks(fwd_hooks=[(f"{HOOK}.diff", keep)]),
        ):
            pair(tokens, prompt_mask=is_prompt)
        assert torch.equal((written["value"] != plain).any(-1), expected)
    assert pair.prompt_mask is None


def test_features_that_write_for_the_base_alone_cannot_be_ablated(pair, tokens):
    sae = dictionary("concat")
    sae.W_dec.data[2, D_MODEL:] = 0
    with pytest.raises(ValueError, match="write nothing there"), ablate_features(pair, sae, [2]):
        pass
    with keep_only_features(pair, sae, [2]):
        pair(tokens)


@pytest.mark.parametrize("fixture", ["pair", "lora_pair"])
@pytest.mark.parametrize("view", ["diff", "concat"])
def test_inducing_adds_the_features_to_the_base_model_alone(fixture, view, tokens, request):
    pair = request.getfixturevalue(fixture)
    sae, features = dictionary(view), [1, 4, 6]
    finetuned, cache = pair.run_with_cache(tokens)
    assert not torch.allclose(finetuned, pair.mirrored()(tokens))
    codes = sae.encode(cache[f"{HOOK}.{view}"])[..., features]
    written = codes @ sae.W_dec[features]
    if view == "concat":
        written = written[..., D_MODEL:] - written[..., :D_MODEL]
    new = cache[f"{HOOK}.base"] + written
    with pair.base_model() as base:
        plain = base(tokens)
        expected = base.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda value, hook: new)])
    edit = induce_features(pair, sae, features)
    with edit:
        assert_close(edit.pair(tokens), expected, atol=1e-5, rtol=1e-4)
        generated = edit.pair.generate(tokens, max_new_tokens=3)
    assert generated.shape == (2, 10)
    assert not torch.allclose(expected, plain, atol=1e-3)
    nothing = induce_features(pair, sae, [])
    with nothing:
        assert_close(nothing.pair(tokens), plain)
    assert torch.equal(pair(tokens), finetuned)


@pytest.mark.parametrize("fixture", ["pair", "lora_pair"])
def test_a_mirrored_pair_runs_the_base(fixture, tokens, request):
    pair = request.getfixturevalue(fixture)
    mirrored = pair.mirrored()
    with pair.base_model() as base:
        assert torch.equal(mirrored(tokens), base(tokens))
    with mirrored.base_model() as finetuned:
        assert torch.equal(finetuned(tokens), pair(tokens))
    here, there = (p.run_with_cache(tokens)[1] for p in (pair, mirrored))
    assert_close(there[f"{HOOK}.diff"], -here[f"{HOOK}.diff"])
    assert mirrored.metadata.base == pair.metadata.finetuned
    assert torch.equal(mirrored.mirrored()(tokens), pair(tokens))


def test_a_direction_is_added_but_for_the_leading_tokens(pair, tokens):
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    _, cache = pair.run_with_cache(tokens)
    new = cache[f"{HOOK}.finetuned"].clone()
    new[:, 1:] += direction
    expected = pair.finetuned.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda v, hook: new)])
    with add_direction(pair, f"{HOOK}.finetuned", direction):
        assert_close(pair(tokens), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="wide"), add_direction(pair, f"{HOOK}.concat", direction):
        pass


def test_interventions_on_two_layers_act_together(pair, tokens):
    upper, lower = dictionary(), dictionary()
    lower.cfg.metadata.hook_name = f"{HOOKS[0]}.diff"
    outputs = []
    for layers in ((lower,), (upper,), (lower, upper)):
        with contextlib.ExitStack() as stack:
            for sae in layers:
                stack.enter_context(ablate_features(pair, sae, [0, 1, 2]))
            outputs.append(pair(tokens))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[i], outputs[j], atol=1e-4)


def test_bad_ablations_are_refused_before_anything_runs(pair, caplog):
    sae = dictionary()
    sae.W_dec.data[3] = 0
    for kwargs, message in (
        ({"features": [3]}, "zero decoder row"),
        ({"features": [0], "method": "mean"}, "without `reference`"),
        ({"features": [0], "reference": ["a"]}, "with `reference`"),
        ({"features": [0], "method": "mean", "reference": []}, "`reference` is empty"),
    ):
        with pytest.raises(ValueError, match=message), ablate_features(pair, sae, **kwargs):
            pass
    with ablate_features(pair, sae, [D_SAE - 1]):
        pair("abcdef")
    assert "nothing was ablated" in caplog.text


def test_joined_edits_equal_opening_one_inside_the_other(pair, tokens):
    below = swap_to_base(pair, HOOKS[0])
    above = ablate_features(pair, dictionary(), [0, 3])
    with below, above:
        expected = pair(tokens)
    both = below & above
    with both as acted:
        assert torch.equal(pair(tokens), expected)
    assert (acted.n_forward_passes, acted.n_changes) == (2, 2)
    assert not torch.equal(expected, pair(tokens))
    assert (both.kind, both.n_features, both.layer) == ("other", 2, None)
    alike = above & ablate_features(pair, dictionary(), [1])
    assert (alike.kind, alike.n_features, alike.layer) == ("ablation", 3, 1)
    prompts = ["abc", "in 2024"]
    under = {"both": both, "below": below, "none": None}
    written = complete(pair, prompts, under=under, max_new_tokens=4)
    with below, above:
        assert written["both"] == complete(pair, prompts, max_new_tokens=4)
    assert (alike & below).parts == (*alike.parts, below)


def test_edits_of_different_pairs_are_not_joined(pair):
    with pytest.raises(ValueError, match="edits of different pairs cannot be joined"):
        swap_to_base(pair, HOOK) & swap_to_base(pair.mirrored(), HOOK)
    for other in (None, "swap_to_base"):
        with pytest.raises(TypeError, match="an edit can be joined with another Edit, got"):
            swap_to_base(pair, HOOK) & other


def test_and_in_place_of_the_ampersand_is_refused(pair):
    edit = swap_to_base(pair, HOOK)
    for wrong in (lambda: edit and edit, lambda: edit or edit, lambda: not edit):
        with pytest.raises(TypeError, match="join edits with `a & b`"):
            wrong()


def test_a_random_change_is_as_long_as_the_difference(pair, tokens):
    seen = pair.activations(tokens, f"{HOOK}.finetuned")[f"{HOOK}.finetuned"]
    diff = pair.activations(tokens, f"{HOOK}.diff")[f"{HOOK}.diff"]
    for _ in range(2):  # the same each time
        with perturb(pair, HOOK):
            logits = pair(tokens)
    change = perturb(pair, HOOK).change(diff, torch.Generator().manual_seed(0)) - diff
    assert_close(change.norm(dim=-1), diff.norm(dim=-1))
    cosine = torch.nn.functional.cosine_similarity(change, diff, dim=-1)
    assert cosine.abs().mean() < 0.6
    with pair.hooks(fwd_hooks=[(f"{HOOK}.finetuned", lambda value, hook: seen + change)]):
        assert_close(logits, pair(tokens), atol=1e-4, rtol=1e-4)
