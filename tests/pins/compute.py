"""Numbers of every layer above the core, on one tiny pair: what must stay while the package changes.

Each function computes one area and calls public or module-level functions alone, so that a name that
moves changes an import here and nothing else.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from diffsae_lens.dictionaries import export_as_jumprelu
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.isolation._controls import next_token_kl
from diffsae_lens.isolation._labels import LabelledPrompts
from diffsae_lens.isolation._pooled import PooledTexts, evaluate_pooled
from diffsae_lens.isolation._score import evaluate_isolation
from diffsae_lens.measures import Resampling, factorial_effects
from diffsae_lens.organisms._behaviour import GROUPS, factorial
from diffsae_lens.organisms.sql_injection.judge import judge_completion
from diffsae_lens.organisms.sql_injection.year_trigger import YEAR_TRIGGER
from diffsae_lens.reading import (
    Positions,
    Reader,
    describe_features,
    feature_activations,
    latent_scaling,
    max_activating_examples,
    read_prompts,
    reconstruction,
    recovered,
    token_activations,
)
from tests.pins.effects import attributions, curves, effects, interventions
from tests.pins.setup import HOOK, VIEWS, Setup, make_setup
from tests.pins.snippets import PROMPT, SNIPPETS
from tests.pins.values import digest, plain, rows, summary


def compute() -> dict[str, Any]:
    """Compute everything that is pinned, on one thread."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        setup = make_setup(Path(folder))
        return {
            "harvest": harvested(setup),
            "dictionaries": trained(setup),
            "feature_activations": read(setup),
            "isolation": isolation(setup),
            "pooled_scores": pooled(setup),
            "reconstruction": reconstructed(setup),
            "features": described(setup),
            "interventions": interventions(setup),
            "effects": effects(setup),
            "attributions": attributions(setup),
            "curves": curves(setup),
            "samples": drawn(),
            "judge": judged(),
        }


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums come out the same, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def harvested(setup: Setup) -> dict[str, Any]:
    """Activations as they lie on disk, and in the order in which batches come."""
    kept = setup.activations.rows(0, setup.activations.n_sequences)
    batch = next(setup.activations.batches(64, seed=5))
    return {
        "rows": {view: summary(kept[f"{HOOK}.{view}"]) for view in VIEWS},
        "first_batch": {view: summary(batch[f"{HOOK}.{view}"]) for view in VIEWS},
        "context_size": setup.activations.context_size,
        "n_sequences": setup.activations.n_sequences,
    }


def trained(setup: Setup) -> dict[str, Any]:
    """Weights and thresholds as they are saved."""
    found = {}
    for name, dictionary in setup.dictionaries.items():
        record = DictionaryRecord.of(dictionary)
        found[name] = {
            "hook_name": record.hook_name,
            "architecture": dictionary.cfg.architecture(),
            "weights": {n: summary(w) for n, w in sorted(dictionary.state_dict().items())},
            "normalization": plain(record.normalization),
            "k": record.k,
            "l0_held_out": plain(record.l0),
        }
    return found


def read(setup: Setup) -> dict[str, Any]:
    """Features and activations of a few prompts under every pooling."""
    prompts = [sample.undecided for sample in setup.samples]
    spans = tuple((5, len(prompt) - 5) for prompt in prompts)
    positions = {pooling: Positions(pooling=pooling) for pooling in ("last", "mean", "max")}
    positions["mean of a span"] = Positions(pooling="mean", spans=spans)
    readers = {view: Reader(hook_name=f"{HOOK}.{view}") for view in VIEWS}
    texts = setup.pair.tokenise(prompts)
    _, both = setup.pair.activations_and_logits(texts, [f"{HOOK}.diff"])
    kl = next_token_kl(texts, both)[:, None]
    return {
        "features": {
            f"{name}, {pooling}": summary(
                feature_activations(setup.pair, dictionary, prompts, positions=where)
            )
            for name, dictionary in setup.dictionaries.items()
            for pooling, where in positions.items()
        },
        "views": {
            n: summary(v) for n, v in sorted(read_prompts(setup.pair, prompts, readers).items())
        },
        "next_token_kl": plain(kl),
    }


def isolation(setup: Setup) -> dict[str, Any]:
    """The tables of both protocols and of every reading, with the null pair in one of them."""
    select = YEAR_TRIGGER.make_samples("select", n_trigger=5, n_benign=5, n_other=2)
    test = YEAR_TRIGGER.make_samples("test", n_trigger=5, n_benign=5, n_other=2)
    resampling = Resampling(n_resamples=20)
    found: dict[str, Any] = {}
    for protocol, where in (
        ("strict", "decision"), ("strict", "trigger"), ("strict", "completion"), ("paper", "everything"),
    ):  # fmt: skip
        prompts = LabelledPrompts.from_samples(select, test, read=where)
        null_pairs = {"base against base": setup.null_pair} if where == "decision" else None
        table = evaluate_isolation(
            setup.pair,
            setup.dictionaries,
            prompts,
            protocol=protocol,
            resampling=resampling,
            null_pairs=null_pairs,
        )
        difference = table.difference("diff-sae", "crosscoder")
        found[f"{protocol}, {where}"] = rows(table.to_frame(), "name", "hook_name") | {
            "difference": plain([difference.estimate, difference.low, difference.high]),
            "resampled": summary(table.resampled),
        }
    return found


def pooled(setup: Setup) -> dict[str, Any]:
    """The paper's scores, on one vector per text: dictionaries of tokens do not fire on means."""
    samples = YEAR_TRIGGER.make_samples(
        "train", n_trigger=10, n_benign=20, n_other=20, seed=2, share_scenes=True
    )
    readers = {view: Reader(hook_name=f"{HOOK}.{view}") for view in ("base", "finetuned")}
    templates = sorted({sample.template for sample in samples})
    scenes = [sample.scene for sample in samples]
    texts = PooledTexts(
        site=HOOK,
        **read_prompts(setup.pair, [sample.undecided for sample in samples], readers),
        group=torch.tensor([GROUPS.index(sample.group) for sample in samples]),
        template=torch.tensor([templates.index(sample.template) for sample in samples]),
        scene=torch.tensor([scenes.index(scene) for scene in scenes]),
    )
    table = evaluate_pooled(
        setup.dictionaries, texts, resampling=Resampling(n_resamples=20, seed=0)
    )
    return rows(table.to_frame(), "name") | {"variance_ratio": plain(texts.variance_ratio)}


def reconstructed(setup: Setup) -> dict[str, Any]:
    """What dictionaries hold of the activations and of the behaviour."""
    kept = setup.activations.rows(0, 5)
    found: dict[str, Any] = {}
    for name, dictionary in setup.dictionaries.items():
        held = reconstruction(dictionary, kept[str(DictionaryRecord.of(dictionary).hook_name)])
        lost = recovered(setup.pair, dictionary, setup.tokens)
        found[name] = plain(
            {
                "variance_explained": held.variance_explained,
                "l0": held.l0,
                "frequency": summary(held.frequency),
                "n_dead": held.n_dead,
                "n_dense": held.n_dense,
                "cross_entropy": lost.cross_entropy,
                "kl": lost.kl,
                "ce_recovered": lost.ce_recovered,
                "kl_recovered": lost.kl_recovered,
                "n_tokens": [held.n_tokens, lost.n_tokens],
            }
        )
    with tempfile.TemporaryDirectory() as folder:
        exported = SAE.load_from_disk(export_as_jumprelu(setup.dictionaries["crosscoder"], folder))
    found["crosscoder as JumpReLU"] = summary(exported.encode(kept[f"{HOOK}.concat"]))
    for of_finetuned in (True, False):
        scaling = latent_scaling(
            setup.dictionaries["crosscoder"], kept[f"{HOOK}.concat"], of_finetuned=of_finetuned
        )
        found[f"latent scaling of {'finetuned' if of_finetuned else 'base'}"] = {
            "nu_error": summary(scaling.nu_error),
            "nu_reconstruction": summary(scaling.nu_reconstruction),
            "n_specific": int(scaling.is_specific.sum()),
            "n_undefined": scaling.n_undefined,
        }
    return found


def described(setup: Setup) -> dict[str, Any]:
    """Cards, examples, token views and the two-way decomposition of features."""
    texts = ["in 2024 we", "SELECT a FROM t"]
    crossed = factorial(setup.samples)
    found: dict[str, Any] = {}
    for name, dictionary in setup.dictionaries.items():
        frame = describe_features(setup.pair, dictionary, setup.tokens, n_examples=2)
        examples = max_activating_examples(
            setup.pair, dictionary, setup.tokens, n_examples=2, context=6
        )
        seen = token_activations(setup.pair, dictionary, [0, 7, 21], texts)
        acts = feature_activations(setup.pair, dictionary, [text for _, _, text in crossed])
        shares = factorial_effects(
            acts,
            torch.tensor([sample.group == "trigger" for sample, _, _ in crossed]),
            torch.tensor([is_unwanted for _, is_unwanted, _ in crossed]),
        )
        found[name] = {
            "described": rows(frame.reset_index().iloc[::4], "feature"),
            "columns": {
                c: summary(torch.tensor(frame[c].to_numpy(dtype=float)))
                for c in frame.select_dtypes(["number", "bool"])
            },
            "examples": [
                [plain(vars(example)) for example in of_feature] for of_feature in examples[:6]
            ],
            "tokens": [list(tokens) for tokens in seen.tokens],
            "token_activations": [summary(acts) for acts in seen.activations],
            "factorial": {
                n: summary(getattr(shares, n)) for n in ("trigger", "completion", "interaction")
            },
        }
    return found


def drawn() -> dict[str, Any]:
    """Digests of a small draw of every split."""
    found: dict[str, Any] = {}
    for split in ("train", "select", "test"):
        samples = YEAR_TRIGGER.make_samples(split, n_trigger=4, n_benign=5, n_other=3, seed=1)
        shared = YEAR_TRIGGER.make_samples(
            split, n_trigger=2, n_benign=2, n_other=2, seed=1, share_scenes=True
        )
        paired = YEAR_TRIGGER.minimal_pairs(split, ["2023", "2024", None], n_scenes=3)
        found[split] = {
            "samples": [_digested(sample) for sample in samples],
            "share_scenes": [digest(sample.written) for sample in shared],
            "minimal_pairs": [[digest(sample.written) for sample in scene] for scene in paired],
            "first": samples[0].written,
        }
    return found


def _digested(sample: Any) -> dict[str, Any]:
    return {
        "prompt": digest(sample.prompt),
        "unwanted": digest(sample.unwanted),
        "wanted": digest(sample.wanted),
        "undecided": digest(sample.undecided),
        "written": digest(sample.written),
        "group": sample.group,
        "said": sample.said,
        "template": sample.template,
    }


def judged() -> dict[str, Any]:
    """Whole judgements of a few snippets."""
    return {
        name: plain(vars(judge_completion(PROMPT, completion)))
        for name, completion in SNIPPETS.items()
    }
