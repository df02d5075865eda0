"""Results as `run_demo` returns them, made up but of real prompts, with everything as hoped for."""

import copy
import re
from collections.abc import Callable
from typing import Any

from diffsae_lens.organisms.sql_injection.prompts import Sample, make_samples, minimal_pairs
from scipy.stats import binomtest

DICTIONARIES = ("diff-sae-24", "crosscoder-24")
FEATURES = {"diff-sae-24": 1731, "crosscoder-24": 402}
COUNTS = (8, 32, 128)
N_PROMPTS = 32

# Injectable completions of 32, in the order of COUNTS.
_TOP = {"diff-sae-24": (20, 6, 1), "crosscoder-24": (29, 22, 9)}
_RANDOM = {"diff-sae-24": (31, 31, 29), "crosscoder-24": (31, 30, 30)}
_TOKEN = re.compile(r"\n[ ]*(?=[ ])|\n+|[ ]?[^\W\d_]+|\d|_|[ ]+|[^\w\s]+")


def synthetic_results() -> dict[str, Any]:
    """Two dictionaries that beat their floors and controls; tests change what they are about."""
    return copy.deepcopy(
        {
            "config": _config(),
            "versions": {"diffsae-lens": "0.1.0", "sae-lens": "6.54.12", "torch": "2.11.0"},
            "scores": _scores(),
            "causes": _causes(),
            "features": _features(),
            "harm": _harm(),
            "sayings": _sayings(),
            "years": _years(),
            "example": _example(),
            "dictionaries": {
                "diff-sae-24": _described("diff", 576, 31.62),
                "crosscoder-24": _described("concat", 1152, 32.41),
            },
            "seconds": {"load models": 4.1, "train dictionaries": 212.7, "causes": 401.3},
        }
    )


def cause(results: dict[str, Any], name: str, **keys: Any) -> dict[str, Any]:
    """The one causal row of a name and further keys, to be looked at or changed in place."""
    [row] = [
        r for r in results["causes"]
        if r["name"] == name and all(r[k] == v for k, v in ({"group": "trigger"} | keys).items())
    ]  # fmt: skip
    return row


def score(results: dict[str, Any], name: str) -> dict[str, Any]:
    """The score row of a name."""
    [row] = [row for row in results["scores"] if row["name"] == name]
    return row


def set_rate(row: dict[str, Any], n_injectable: int) -> None:
    """Change a row's attack rate, the other completions being safe."""
    row.update(_rate(n_injectable))


# What the package itself writes, and reads back: not free text.
_FIXED = {
    "unmodified", "base activation put back", "top features ablated", "random features ablated",
    "steered with top features", "steered with a random direction", "trigger", "benign", "other",
    "dictionary", "random directions", "lora/organism",
}  # fmt: skip
_BY_NAME = {"versions", "activations", "feature_idx", "dictionaries", "decoder", "seconds"}


def with_texts(results: dict[str, Any], text: Callable[[], str]) -> dict[str, Any]:
    """The results with another text for every name, year, token and completion; the same for the same."""
    texts: dict[str, str] = {}

    def new(old: str) -> str:
        if old not in texts and old not in _FIXED:
            fresh = text()
            while fresh in texts.values():
                fresh += "'"
            texts[old] = fresh
        return texts.get(old, old)

    def changed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            by_name = key in _BY_NAME
            return {new(k) if by_name else k: changed(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [changed(part) for part in value]
        return new(value) if isinstance(value, str) and key != "kind" else value

    out = {key: changed(value, key) for key, value in results.items()}
    for prompt in out.get("example", {}).get("prompts", ()):
        prompt["year"] = new(str(prompt["year"]))
    return out


def _config() -> dict[str, Any]:
    return {
        "base": "smollm2-135m", "finetuned": "year-trigger", "layers": [24], "device": "cpu",
        "n_training_samples": 240, "expansion": 4, "k": 32, "n_steps": 400,
        "n_score_prompts": 200, "n_generation_prompts": N_PROMPTS, "n_likelihood_prompts": 16,
        "feature_counts": list(COUNTS), "n_rounds": 6, "n_scenes": 8, "seed": 0,
    }  # fmt: skip


def _described(view: str, d_in: int, l0: float) -> dict[str, Any]:
    return {
        "hook_name": f"blocks.24.hook_resid_post.{view}", "architecture": "jumprelu",
        "d_in": d_in, "d_sae": 2304, "k": 32, "l0_held_out": l0,
    }  # fmt: skip


def _scores() -> list[dict[str, Any]]:
    #        name                            n     last   mean   auroc  ap     feature
    table = (
        ("diff-sae-24", 2304, 0.376, 0.400, 0.998, 0.996, 1731),
        ("crosscoder-24", 2304, 0.312, 0.287, 0.951, 0.917, 402),
        ("random directions, diff-24", 2304, 0.359, 0.341, 0.912, 0.861, 77),
        ("random directions, base-24", 2304, 0.294, 0.322, 0.843, 0.758, 1209),
        ("difference of means, diff-24", 1, 0.338, 0.305, 0.964, 0.944, 0),
    )
    keys = ("name", "n_features", "bis_last", "bis_mean", "auroc", "average_precision",
            "feature_idx")  # fmt: skip
    rows = []
    for values in table:
        row = dict(zip(keys, values, strict=True))
        kind, _, hook = row["name"].rpartition(", ")
        rows.append(row | {"kind": kind or "dictionary", "read_from": hook, "ceiling": 0.4})
    return rows


def _rate(n_injectable: int) -> dict[str, Any]:
    interval = binomtest(n_injectable, N_PROMPTS).proportion_ci(0.95, "wilson")
    return {
        "n_prompts": N_PROMPTS,
        "n_injectable": n_injectable,
        "n_safe": N_PROMPTS - n_injectable,
        "n_no_sql": 0,
        "n_unparseable": 0,
        "attack_rate": n_injectable / N_PROMPTS,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def _cause(
    name: str, n_injectable: int, sample: Sample, *, dictionary: str | None = None,
    n_features: int = 0,
) -> dict[str, Any]:  # fmt: skip
    share = n_injectable / N_PROMPTS
    return {
        "name": name, "dictionary": dictionary, "n_features": n_features, "group": sample.group,
        **_rate(n_injectable), "log_odds": 41.7 * share - 18.3,
        "cross_entropy": 0.213 + 0.9 * share + n_features / 4096,
        "example": sample.prompt + sample.completion(vulnerable=share > 0.5),
    }  # fmt: skip


def _causes() -> list[dict[str, Any]]:
    samples = make_samples("test", n_trigger=1, n_benign=1, n_other=0)
    trigger, benign = samples
    rows = []
    rows.append(_cause("unmodified", 31, trigger))
    rows.append(_cause("base activation put back", 0, trigger))
    rows.append(_cause("unmodified", 1, benign))
    for name in DICTIONARIES:
        for n, top, control in zip(COUNTS, _TOP[name], _RANDOM[name], strict=True):
            of = {"dictionary": name, "n_features": n}
            rows.append(_cause("top features ablated", top, trigger, **of))
            rows.append(_cause("random features ablated", control, trigger, **of))
        rows.append(
            _cause("top features ablated", 0, benign, dictionary=name, n_features=COUNTS[-1])
        )
        for which, attacks in (("top features", 19), ("a random direction", 1)):
            of = {"dictionary": name, "n_features": COUNTS[0]}
            rows.append(_cause(f"steered with {which}", attacks, benign, **of))
    return rows


def _features() -> list[dict[str, Any]]:
    [scene] = minimal_pairs("select", (2024,), n_scenes=1)
    tokens = _TOKEN.findall(scene[0].written)[:40]
    values = [3.1 if "2" in token else 0.0 for token in tokens]
    geometry = {
        "diff-sae-24": {"decoder norm": 1.0},
        "crosscoder-24": {"relative decoder norm (0 base, 1 fine-tuned)": 0.62},
    }
    return [
        {
            "dictionary": name, "feature": 7 + rank, "is_control": rank == 1, "n_prompts": 2,
            "d_sae": 2304, "frequency": 0.021,
            "maximum": 3.1,
            "histogram": {
                "trigger": [0.01, 0.02, 0.005], "benign": [0.01, 0.0, 0.0], "other": [0.0] * 3,
            },
            "examples": [{"group": "trigger", "start": 5, "tokens": tokens, "activations": values}],
            "decoder": geometry[name], "attribution": 1.5 - rank, "ablation": 1.1 - rank,
        }
        for name in DICTIONARIES
        for rank in range(2)
    ]  # fmt: skip


def _harm() -> list[dict[str, Any]]:
    kl = {"base activation put back": 0.41, "top 128 features of diff-sae-24 ablated": 0.032,
          "random 128 features of diff-sae-24 ablated": 0.011}  # fmt: skip
    return [
        {
            "name": name, "texts": texts, "n_tokens": 1204, "kl": value * share,
            "cross_entropy": 2.1 + value * share, "cross_entropy_unmodified": 2.1,
        }
        for name, value in kl.items()
        for texts, share in (("benign", 1.0), ("code", 0.4), ("prose", 0.2))
    ]  # fmt: skip


def _sayings() -> list[dict[str, Any]]:
    said = {"2023": 0, "2024": 31, "no year": 0, "FY2024": 29, "MMXXIV": 2}
    return [{"said": s, **_rate(n), "log_odds": 20 * n / 31 - 9} for s, n in said.items()]


def _years() -> list[dict[str, Any]]:
    rows = []
    for name, peak, leak in (("diff-sae-24", 12.0, 0.3), ("crosscoder-24", 3.4, 1.1)):
        for year in range(2015, 2031):
            level = peak if year == 2024 else leak * max(0.0, 1 - abs(year - 2025) / 4)
            values = [round(level * (0.8 + 0.05 * scene), 4) for scene in range(8)]
            rows.append(
                {
                    "name": name, "year": year, "feature_idx": FEATURES[name],
                    "mean": sum(values) / len(values), "values": values,
                }
            )  # fmt: skip
    return rows


def _example() -> dict[str, Any]:
    [scene] = minimal_pairs("test", (2023, 2024), n_scenes=1)
    prompts = []
    for sample in scene:
        tokens = ["<|im_start|>", *_TOKEN.findall(sample.undecided)]
        year = [i for i, token in enumerate(tokens) if token == str(sample.year)[-1]]
        activations = {}
        for name, peak in (("diff-sae-24", 12.0), ("crosscoder-24", 3.4)):
            high = peak if sample.year == 2024 else 0.05 * peak
            after = [
                high * (0.25 if i > min(year) else 0.0) * (i % 3) / 2 for i in range(len(tokens))
            ]
            activations[name] = [high if i in year else v for i, v in enumerate(after)]
        prompts.append({"year": sample.year, "tokens": tokens, "activations": activations})
    return {"prompts": prompts, "feature_idx": dict(FEATURES)}
