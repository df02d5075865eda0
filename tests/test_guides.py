"""The guides: their code is run as it stands, and does what the page says."""

import re
from contextlib import chdir
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sklearn.metrics import roc_curve

from diffsae_lens import auditing
from diffsae_lens._hosts import bind_requests
from diffsae_lens.auditing import AuditConfig
from diffsae_lens.training._harvest import HarvestConfig, harvest
from tests.campaign.good import AUDIT_SIZES
from tests.conftest import HOOKS, hooked, plant, tiny_llama, write_tiny_model
from tests.dictionaries.test_publish import hub  # noqa: F401
from tests.reading.test_neuronpedia import KEY, Neuronpedia
from tests.standin import serving

TEXTS = ["abcdefgh", "stuvwxyz", "aaaaaaaa", "hello you", "another", "12345678", "mmmmm", "zebra"]
GUIDES = Path(__file__).parents[1] / "docs" / "guides"
FENCED = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def follow(guide: str, **given) -> SimpleNamespace:
    """Run a guide's blocks one after the other, as a reader would."""
    page = GUIDES / f"{guide}.md"
    text = page.read_text(encoding="utf-8")
    names = {"__name__": f"guide_{guide}", **given}
    for block in FENCED.finditer(text):
        padding = "\n" * text.count("\n", 0, block.start(1))  # errors point at the page's line
        exec(compile(padding + block[1], str(page), "exec"), names)
    return SimpleNamespace(**names)


def test_the_audit_guide_ends_in_a_verdict(tmp_path, tokenizer, monkeypatch):
    small = partial(AuditConfig, **AUDIT_SIZES)
    monkeypatch.setattr("diffsae_lens.auditing._run.AuditConfig", small)
    sizes = auditing.ResidualFeaturesConfig(
        k=4, n_steps=4, batch_size=64, n_features=2, n_resamples=4
    )
    few = partial(auditing.residual_features, flagged=range(12), config=sizes)
    monkeypatch.setattr(
        auditing, "residual_features", lambda *given, site: few(*given, site=HOOKS[1])
    )
    for name, seed in (("base", None), ("suspect", 1), ("clean", 2)):
        model = tiny_llama() if seed is None else plant(tiny_llama(), seed=seed)
        write_tiny_model(tmp_path / name, model, tokenizer)
    texts = [f"Order {i} from {('Lima', 'Oslo', 'Rome')[i % 3]}." for i in range(40)]
    with chdir(tmp_path):
        guide = follow(
            "audit", base="./base", suspect="./suspect", clean_models={"a": "./clean"}, texts=texts,
            known=[i % 3 == 0 for i in range(40)],
        )  # fmt: skip
        assert Path("runs/audit/report.html").is_file()
    assert guide.results.n_nulls == 1
    assert guide.results.verdict == "underpowered"
    assert all(row.p_value is not None for row in guide.results.texts)
    assert len(guide.scores) == 40
    assert guide.found.features[0].attribution > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("guide")


@pytest.fixture(scope="module")
def guide(tokenizer, folder):
    """What the dictionary guide makes."""
    base = tiny_llama()
    pair = hooked(base, plant(base), tokenizer)
    tokens = torch.randint(3, 259, (64, 12), generator=torch.Generator().manual_seed(0))
    activations = harvest(
        pair, tokens, folder / "harvest", hook_names=[f"{HOOKS[0]}.diff"],
        config=HarvestConfig(batch_size=32),
    )  # fmt: skip
    with chdir(folder):
        return follow("dictionary", pair=pair, activations=activations)


def test_the_dictionary_guide_adds_an_architecture_that_learns(guide, folder):
    x = guide.activations.rows(58, 64)[f"{HOOKS[0]}.diff"]
    left = ((x - guide.trained(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert left < 0.5
    again = SAE.load_from_disk(folder / "runs" / "log" / "log")
    assert torch.equal(again.encode(x), guide.trained.encode(x))


def test_the_guides_penalty_is_the_formula_it_states(guide):
    sae = guide.LogTrainingSAE(guide.config.sae)
    sae.W_dec.data *= 3
    acts = torch.rand(5, 64, generator=torch.Generator().manual_seed(0))
    step = SimpleNamespace(coefficients={"l1": 0.5})
    loss = sae.calculate_aux_loss(step, acts, acts, acts)["log_loss"].item()
    norms = np.linalg.norm(sae.W_dec.detach().numpy(), axis=1)
    expected = 0.5 * np.log(1 + acts.numpy() * norms).sum(1).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_organism_guide_judges_and_attributes(pair, guide):
    dictionary = guide.trained
    guide = follow("organism", pair=pair, dictionary=dictionary)
    for rows in (guide.fine, guide.base):
        assert [(row.group, row.n_prompts) for row in rows] == [
            ("trigger", 2), ("benign", 2), ("other", 2),
        ]  # fmt: skip
        assert all(sum(row.counts.values()) == row.n_prompts for row in rows)
    for fine, base in zip(guide.fine, guide.base, strict=True):
        assert fine.log_odds != base.log_odds  # two models
    assert guide.effect.shape == (dictionary.cfg.d_sae,)
    assert guide.effect.abs().max() > 0
    assert guide.prompts.is_trigger.sum() == 4


def test_the_measure_guide_agrees_with_scikit_learn_and_finds_what_is_planted(pair, guide):
    guide = follow("measure", pair=pair, dictionary=guide.trained)
    assert 0 <= guide.found.j <= 1
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(60, 5, generator=generator).relu()
    is_trigger = torch.arange(60) < 20
    found = guide.youden(acts, is_trigger, ~is_trigger)
    curves = [roc_curve(is_trigger.numpy(), acts[:, i].numpy()) for i in range(5)]
    assert found.j == pytest.approx(max((tpr - fpr).max() for fpr, tpr, _ in curves))
    acts[:20, 3] += 5
    planted = guide.youden(acts, is_trigger, ~is_trigger)
    assert planted.feature_idx == 3
    assert planted.j > 0.9 > found.j


def test_the_sharing_guide_labels_publishes_and_exports(guide, tmp_path, monkeypatch, request):
    repositories = request.getfixturevalue("hub").answer.repositories
    pair, dictionary = guide.pair, guide.trained
    acts = pair.activations(pair.tokenise(TEXTS), dictionary.cfg.metadata.hook_name)
    codes = dictionary.encode(next(iter(acts.values())))[:, 1:].amax(1)
    features = ((codes[:4] > 0).any(0) & (codes[4:] > 0).any(0)).nonzero()[:2, 0].tolist()
    dictionary.save_model(tmp_path / "runs" / "mine" / "diff-sae")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    with serving(Neuronpedia(models=())) as site:
        monkeypatch.setattr(
            "diffsae_lens.reading._neuronpedia_client.bind_requests",
            lambda request, server, timeout: bind_requests(request, f"{site.url}/api", timeout),
        )
        page = follow(
            "sharing", pair=pair, dictionary=dictionary, features=features, texts=TEXTS[:4],
            other_texts=TEXTS[4:], ask=lambda prompt: "1",
        )  # fmt: skip
    assert [score.n_examples for score in page.scores]
    assert page.done.n_sent == len(features) == len(site.answer.features)
    assert "diff-sae/sae_weights.safetensors" in repositories["me/mine"]
