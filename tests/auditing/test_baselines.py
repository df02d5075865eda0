"""Baseline scores, against plain loops; the comparison of methods, against scikit-learn."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from diffsae_lens.auditing import BaselineRow, baseline_scores, compare_scores
from diffsae_lens.auditing._readings import Cosines, singular_vectors
from diffsae_lens.auditing._written import N_KEPT
from diffsae_lens.pair._adapters import quiet_peft
from diffsae_lens.results import Table
from tests.auditing.small import audited, orders, suspect
from tests.conftest import N_LAYERS, plant, tiny_llama


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("baselines") / "audit"
    results = audited(path, tokenizer)
    return path, results, run(path, tokenizer)


def run(path, tokenizer, **changes):
    arguments = {"base": tiny_llama(), "suspect": suspect(), "texts": orders()} | changes
    return baseline_scores(path, **arguments, tokenizer=tokenizer)


@torch.no_grad()
def by_hand(model, text, n_new, tokenizer, tokens=None):
    """Tokens written greedily, log-probabilities there, and activations after each layer there."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokens is None:
        tokens, past, read = [], None, ids
        for _ in range(n_new):
            out = model(torch.tensor([read]), past_key_values=past, use_cache=True)
            tokens.append(int(out.logits[0, -1].argmax()))
            past, read = out.past_key_values, tokens[-1:]
            if tokens[-1] == tokenizer.eos_token_id:
                break
    out = model(torch.tensor([ids + tokens]), output_hidden_states=True)
    at = slice(len(ids) - 1, len(ids) + len(tokens) - 1)
    states = torch.stack([state[0, at].mean(0) for state in out.hidden_states[1:]])
    return tokens, out.logits[0, at].log_softmax(-1), states


def test_scores_are_those_of_plain_loops(scored, tokenizer):
    path, results, rows = scored
    folds = {}
    for fold in (0, 1):
        folder = path / f"imitator{fold}" / f"imitator{fold}"
        with quiet_peft():
            folds[fold] = PeftModel.from_pretrained(tiny_llama(), folder).eval()
    order = np.random.default_rng(0).permutation(48)
    differences, distances = [], []
    finetuned, base = suspect(), tiny_llama()
    for i, text in enumerate(orders()):
        tokens, ours, h = by_hand(finetuned, text, 6, tokenizer)
        _, theirs, h_base = by_hand(base, text, 6, tokenizer, tokens)
        imitator = folds[int(np.flatnonzero(order == i)[0]) % 2]
        _, _, h_imitator = by_hand(imitator, text, 6, tokenizer, tokens)
        at = torch.arange(len(tokens)), torch.tensor(tokens)
        assert rows[i].log_ratio == pytest.approx((ours - theirs)[at].max().item(), abs=1e-3)
        kept = ours.topk(N_KEPT).indices  # what is left of the distribution counts as one token
        p, q = ours.exp().gather(1, kept), theirs.exp().gather(1, kept)
        rest = 1 - p.sum(1), 1 - q.sum(1)
        kl = (p * (p / q).log()).sum() + (rest[0] * (rest[0] / rest[1]).log()).sum()
        assert rows[i].kl_to_base == pytest.approx(kl.item(), abs=1e-3)
        differences.append(h - h_base)
        distances.append((h - h_imitator).norm(dim=1))
        assert rows[i].residual == results.texts[i].residual
    differences, distances = torch.stack(differences), torch.stack(distances)
    from_mean = (differences - differences.mean(0)).norm(dim=2)
    for name, values in (("mean_difference", from_mean), ("imitator_match", distances)):
        values = values[:, values.std(0) > 1e-6]
        z = ((values - values.mean(0)) / values.std(0)).amax(1)
        found = torch.tensor([getattr(row, name) for row in rows])
        torch.testing.assert_close(found, z, atol=2e-3, rtol=1e-3)


def test_singular_vectors_are_the_directions_that_were_planted():
    base = tiny_llama()
    found = singular_vectors(base, plant(base), 4)
    assert sorted(found) == list(range(N_LAYERS))
    generator = torch.Generator().manual_seed(1)
    for of_layer in found.values():
        left = torch.randn(16, 1, generator=generator)[:, 0]
        torch.randn(1, 32, generator=generator)
        assert len(of_layer) == 1  # of rank one
        cosine = of_layer[0] @ left / left.norm()
        assert abs(cosine.item()) == pytest.approx(1.0, abs=1e-3)
    assert singular_vectors(base, tiny_llama(), 4) == {}


def test_the_largest_cosine_of_a_text_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(3, 5, 4, generator=generator) for _ in range(2)]
    directions = {1: torch.nn.functional.normalize(torch.randn(2, 4, generator=generator), dim=1)}
    read = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()
    cosines = Cosines(directions)
    cosines.add(states, read, torch.tensor([2, 0, 1]))
    by_text = {2: [], 0: [], 1: []}
    for row, text in enumerate((2, 0, 1)):
        for pos in range(5):
            if read[row, pos]:
                state = states[1][row, pos]
                by_text[text].append((directions[1] @ (state / state.norm())).tolist())
    every = np.array([c for of in by_text.values() for c in of])
    mean, std = every.mean(0), every.std(0, ddof=1)
    for text, value in enumerate(cosines.largest(3).tolist()):
        assert value == pytest.approx(np.abs((np.array(by_text[text]) - mean) / std).max(), 1e-4)


def test_scores_are_kept_and_some_texts_can_be_chosen(scored, tokenizer, monkeypatch):
    path, _, rows = scored
    some = run(path, tokenizer, only=[4, 7, 2])
    assert [row.index for row in some] == [4, 7, 2]
    assert some[1].kl_to_base == pytest.approx(rows[7].kl_to_base, abs=1e-4)
    monkeypatch.setattr("diffsae_lens.auditing._baselines._columns", None)
    assert run(path, tokenizer).rows == rows.rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": orders(47)}, "`texts` are not those of the audit"),
        ({"base": tiny_llama(seed=3)}, "`base` is not the model that was audited"),
        ({"suspect": plant(tiny_llama())}, "`suspect` is not the model that was audited"),
        ({"only": [3]}, "two texts or more"),
        ({"only": [48, 1]}, "only"),
    ],
)
def test_another_audit_s_models_and_texts_are_refused(scored, tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        run(scored[0], tokenizer, **change)


def test_a_folder_without_an_audit_is_refused(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError):
        run(tmp_path, tokenizer)


def table(**columns):
    n = len(next(iter(columns.values())))
    names = (
        "residual",
        "kl_to_base",
        "log_ratio",
        "mean_difference",
        "random_directions",
        "imitator_match",
    )
    rows = [
        BaselineRow(
            index=i, singular_vectors=None, **{name: columns.get(name, [0.0] * n)[i] for name in names}
        )
        for i in range(n)
    ]  # fmt: skip
    return Table(tuple(rows))


def test_methods_are_compared_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    labels = [bool(x) for x in rng.random(60) < 0.2]
    noisy = (rng.normal(size=60) + labels).tolist()
    perfect = [10.0 + i if label else i / 100 for i, label in enumerate(labels)]
    found = compare_scores(table(residual=perfect, kl_to_base=noisy), labels)
    by_name = {row.method: row for row in found}
    assert "singular_vectors" not in by_name
    assert by_name["kl_to_base"].auroc == pytest.approx(roc_auc_score(labels, noisy))
    n = sum(labels)
    best = found[0]
    assert (best.method, best.auroc, best.recall) == ("residual", 1.0, 1.0)
    assert best.ranks == list(range(1, n + 1))
    wilson = binomtest(n, n).proportion_ci(method="wilson")
    assert (best.low, best.high) == pytest.approx((wilson.low, wilson.high))
    constant = by_name["log_ratio"]
    assert (constant.auroc, constant.recall) == (0.5, 0.0)
    assert constant.ranks == [60] * n


def test_intervals_of_the_auroc_hold_the_true_one_as_often_as_they_say():
    rng, truth, n_held = np.random.default_rng(1), 0.9214, 0  # Phi(2 / sqrt 2)
    labels = [True] * 4 + [False] * 60
    for _ in range(50):
        values = rng.normal(size=64) + 2.0 * np.array(labels)
        row = compare_scores(table(residual=values.tolist()), labels).where(method="residual")[0]
        n_held += row.low <= truth <= row.high
    assert n_held >= 46


@pytest.mark.parametrize("labels", [[True] * 5, [False] * 5, [True, False]])
def test_labels_that_compare_nothing_are_refused(labels):
    with pytest.raises(ValueError, match="`labels` must be"):
        compare_scores(table(residual=[1.0] * 5), labels)
