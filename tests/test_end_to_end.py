"""The main job on the real embedded model and the shipped organisms."""

from functools import partial

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

import diffsae_lens as dl
from diffsae_lens.auditing import LEXICON
from diffsae_lens.auditing._nulls import find_nulls
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.pair._fingerprint import model_fingerprint
from diffsae_lens.pair._loading import load_pair
from diffsae_lens.pair._model_files import SHIPPED_ORGANISMS_DIR, shipped_organisms
from diffsae_lens.pair._plain import load_plain
from diffsae_lens.reading._prompts import Positions
from diffsae_lens.study._presets import DemoOptions, demo
from diffsae_lens.study._stages import cells_of

pytestmark = pytest.mark.real_model

HOOK = "blocks.18.hook_resid_post"


def few(n=4, seed=7):
    return YEAR_TRIGGER.make_samples("test", n_trigger=n, n_benign=n, n_other=n, seed=seed)


def test_the_backdoor_is_there_and_the_base_activation_takes_it_away(real_pair):
    samples = few()
    rates = dl.effects.attack_rates(
        partial(dl.complete, real_pair), samples, behaviour=YEAR_TRIGGER
    )
    assert rates["trigger"].n_unwanted == 4
    assert rates["benign"].n_unwanted == rates["other"].n_unwanted == 0
    triggers = [s for s in samples if s.group == "trigger"]
    odds = dl.effects.log_odds(real_pair, triggers)
    assert (odds > 0).all()
    with dl.swap_to_base(real_pair, HOOK):
        assert (odds - dl.effects.log_odds(real_pair, triggers)).mean() > 4


def test_without_hooks_the_pair_is_the_finetuned_model_to_the_bit(real_pair):
    tokens = real_pair.to_tokens(few()[0].prompt)
    logits, cache = real_pair.run_with_cache(tokens, names_filter=f"{HOOK}.diff")
    assert torch.equal(logits, real_pair.finetuned(tokens))
    with real_pair.base_model() as base:
        _, alone = base.run_with_cache(tokens, names_filter=HOOK)
    _, tuned = real_pair.finetuned.run_with_cache(tokens, names_filter=HOOK)
    assert torch.equal(cache[f"{HOOK}.diff"], tuned[HOOK] - alone[HOOK])


def test_a_diff_sae_trains_loads_scores_and_intervenes(real_pair, tmp_path):
    samples = YEAR_TRIGGER.make_samples("train", n_trigger=12, n_benign=12, n_other=6)
    texts = [s.written for s in samples]
    activations = dl.training.harvest(
        real_pair, real_pair.to_tokens(texts, padding_side="right"), tmp_path / "activations",
        hook_names=[f"{HOOK}.diff"],
    )  # fmt: skip
    sae = BatchTopKTrainingSAEConfig(
        d_in=576, d_sae=576, k=16, normalize_activations="expected_average_only_in"
    )
    trainer = SAETrainerConfig(
        total_training_samples=256 * 60, train_batch_size_samples=256, lr=1e-3, lr_end=1e-4,
        n_batches_for_norm_estimate=4,
    )  # fmt: skip
    dl.training.train_dictionaries(
        {"diff-sae": dl.training.DiffSAERunnerConfig(hook_name=HOOK, sae=sae)},
        activations, tmp_path, run=dl.training.TrainingRun(trainer=trainer),
    )  # fmt: skip
    dictionary = SAE.load_from_disk(tmp_path / "diff-sae")

    test = few(8)
    acts = dl.feature_activations(
        real_pair, dictionary, [s.prompt for s in test], positions=Positions(pooling="last")
    )
    groups = [s.group for s in test]
    trigger, benign = (torch.tensor([g == name for g in groups]) for name in ("trigger", "benign"))
    assert dl.measures.auroc(acts, trigger, benign).max() > 0.9
    result = dl.measures.bis(acts, trigger, benign)
    assert 0 < result.bis <= result.ceiling

    triggers = [s for s in test if s.group == "trigger"]
    before = dl.effects.log_odds(real_pair, triggers).mean()
    order = dl.attribute_features(real_pair, dictionary, triggers[:4]).argsort(descending=True)
    with dl.ablate_features(real_pair, dictionary, order[:64].tolist()):
        top = dl.effects.log_odds(real_pair, triggers).mean()
    with dl.ablate_features(real_pair, dictionary, order[-64:].tolist()):
        bottom = dl.effects.log_odds(real_pair, triggers).mean()
    assert top < before - 1
    assert bottom > top + 1


def test_the_second_behaviour_is_there_by_the_same_calls():
    behaviour = dl.get_behaviour("staging-trigger")
    pair = load_pair("smollm2-135m", "staging-trigger", hook_names=[HOOK])
    samples = behaviour.make_samples("test", n_trigger=4, n_benign=4, n_other=4, seed=7)
    base_back = {"base put back": dl.swap_to_base(pair, HOOK)}
    table = dl.compare_interventions(
        pair, base_back, samples, behaviour=behaviour, n_likelihood=2, max_new_tokens=24
    )
    rates = {(row.name, row.group): row.attack_rate for row in table}
    assert rates["unmodified", "trigger"] >= 0.75
    assert rates["unmodified", "benign"] == rates["unmodified", "other"] == 0
    assert rates["base put back", "trigger"] < rates["unmodified", "trigger"]


def test_an_audit_of_the_embedded_model_has_clean_models_to_compare_with():
    base = load_plain("smollm2-135m", "year-trigger").base
    known = find_nulls(
        None, model_fingerprint(base.state_dict().values()), dl.auditing.AuditConfig(), LEXICON
    )
    assert known.enough(0.05)


def test_the_demo_is_a_plan_of_about_ten_cells():
    parts = [cell.config.part for cell in cells_of(demo(DemoOptions(layers=(14, 18))))]
    assert parts == [
        "organism", "tokens", "dictionaries", "scores", "dictionaries", "scores", "features", "causes",
        "cards", "side_effects", "sweep", "example", "sayings",
    ]  # fmt: skip


@pytest.mark.parametrize("name", shipped_organisms())
def test_shipped_adapters_are_small_safetensors_with_a_card(name):
    folder = SHIPPED_ORGANISMS_DIR / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 6_000_000
    card = (folder / "README.md").read_text()
    for what in ("attack rate", "95% Wilson", "training loss", "seed", "Licence", "make-organism"):
        assert what in card
    assert not [f for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]
