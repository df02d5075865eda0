"""The numbers published in arXiv 2605.07324, for comparison with ours.

From `exp_fullrank/results.json` of github.com/techsachinkr/diff-sae-backdoor-detection; no results for the
LoRA regime were released.
"""

from diffsae_lens.results import PublishedRow

_DIFF_32X = {14: (0.374, 0.426), 18: (0.376, 0.428), 22: (0.373, 0.426), 26: (0.377, 0.422)}
_DIFF_4X = {14: (0.377, 0.428), 18: (0.372, 0.425), 22: (0.374, 0.426), 26: (0.377, 0.423)}
_CROSSCODER = {14: (0.0, None), 18: (0.0, None), 22: (0.0, None), 26: (0.235, (0.200, 0.272))}
VARIANCE_RATIO = {14: 0.0087, 18: 0.0144, 22: 0.0360, 26: 0.0505}
"""Var(finetuned - base) / Var(base) of the full-rank model, by layer."""


def published_rows() -> list[PublishedRow]:
    """Return the published table."""
    rows = []
    for layer, variance_ratio in VARIANCE_RATIO.items():
        bis, interval = _CROSSCODER[layer]
        for name, value, (low, high) in (
            ("crosscoder 32x", bis, interval or (None, None)),
            ("Diff-SAE 32x", 0.4, _DIFF_32X[layer]),
            ("Diff-SAE 4x", 0.4, _DIFF_4X[layer]),
        ):
            row = PublishedRow(
                name=name, regime="full", layer=layer, bis=value, low=low, high=high,
                variance_ratio=variance_ratio,
            )  # fmt: skip
            rows.append(row)
    return rows
