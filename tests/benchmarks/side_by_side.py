"""What features cause, at the price of plain generation: ratios, each measured in one run.

    python -m tests.benchmarks.side_by_side [--rounds 1] [--prompts 10]

Completing under 12 edits at once against bare transformers on as many rows, and against rows that share
nothing; one edit against none; ablating 60 features against 60 plain passes over both completions;
attributing all features of a dictionary, once and in 8 rounds, against one forward and one backward pass.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

import diffsae_lens as dl
from diffsae_lens.effects._likelihood import (
    COMPLETIONS,
    encode_completions,
    encoded,
    score_completions,
)
from diffsae_lens.interventions._edit import Edit
from diffsae_lens.pair._embedded import EMBEDDED_MODEL, embedded_model_path
from tests.benchmarks.scores import hook_names, samples

N_EDITS, N_NEW, N_FEATURES, N_ROUNDS, LAYER = 12, 48, 60, 8, 18


def cpu() -> str:
    """The name of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().split("model name") if info.exists() else []
    return names[1].split(":")[1].splitlines()[0].strip() if names[1:] else platform.processor()


def bare_model() -> Any:
    """The fine-tuned model in plain transformers, its adapter merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = Path(dl.__file__).parent / "organisms" / "adapters" / "year-trigger"
    model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).merge_and_unload().eval()


def untrained(pair: dl.HookedModelPair, hook_name: str) -> SAE:
    """A random dictionary on the difference, four times as wide, of which half the features fire."""
    sae = SAE.from_dict({
        "architecture": "standard", "d_in": pair.cfg.d_model, "d_sae": 4 * pair.cfg.d_model,
        "dtype": "float32", "device": "cpu", "metadata": {"hook_name": f"{hook_name}.diff"},
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(sae.cfg.d_sae, sae.cfg.d_in, generator=generator)
    sae.W_dec.data = torch.nn.functional.normalize(rows, dim=1)
    sae.W_enc.data = sae.W_dec.data.T.clone()
    return sae


def forward_and_backward(
    pair: dl.HookedModelPair, bare: Any, chosen: list[dl.Sample]
) -> Callable[[], Any]:
    """One pass of the plain model over both completions, and back to the embeddings."""
    texts = [(sample.prompt, getattr(sample, which)) for sample in chosen for which in COMPLETIONS]
    tokens, labels = encode_completions(pair, texts)
    bare.requires_grad_(requires_grad=False)

    def run() -> None:
        embedded = bare.get_input_embeddings()(tokens).requires_grad_()
        scores = score_completions(
            pair,
            tokens,
            labels,
            model=lambda _, **kept: bare(inputs_embeds=embedded, **kept).logits,
        )
        torch.autograd.grad(scores.sum(), embedded)

    return run


def compare(name: str, of: Callable[[], Any], to: dict[str, Callable[[], Any]], n: int) -> None:
    """Time one thing and others in turns, and print the ratios."""
    seconds: dict[str, list[float]] = {each: [] for each in (name, *to)}
    for _ in range(n):
        for each, run in {name: of, **to}.items():
            start = time.perf_counter()
            run()
            seconds[each].append(time.perf_counter() - start)
            print(f"  {each}: {seconds[each][-1]:.1f} s", flush=True)
    own = median(seconds.pop(name))
    for each, others in seconds.items():
        print(f"{name}, against {each}: {own / median(others):.2f}", flush=True)


def main() -> None:
    """Time everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=10)
    options = parser.parse_args()
    n_rounds, n_prompts = options.rounds, options.prompts
    [hook_name] = hook_names([LAYER])
    pair = dl.load_pair(EMBEDDED_MODEL, "year-trigger", hook_names=[hook_name])
    bare, sae = bare_model(), untrained(pair, hook_name)
    chosen = samples("test", n_prompts, (1, 0, 0))
    prompts = [sample.prompt for sample in chosen]
    lengths = pair.tokenise(prompts).lengths
    print(
        f"{cpu()}, {torch.get_num_threads()} threads; prompts of {max(lengths)} tokens at most",
        flush=True,
    )

    rows = torch.randn(N_EDITS - 2, pair.cfg.d_model, generator=torch.Generator().manual_seed(0))
    under: dict[str, Edit | None] = {"unmodified": None}
    under["base put back"] = dl.swap_to_base(pair, hook_name)
    for i, row in enumerate(rows):
        under[f"direction {i}"] = dl.interventions.project_out(pair, f"{hook_name}.diff", row)
    one = {"ablated": dl.ablate_features(pair, sae, list(range(8)))}
    written: dict[str, dict[str, list[str]]] = {}

    def complete(edits: dict[str, Edit | None], *, shares: bool) -> None:
        pair._shares = shares
        written["shared" if shares else "plain"] = dl.complete(pair, prompts, under=edits)
        pair._shares = None

    def generate(n: int) -> None:
        texts = [prompt for prompt in prompts for _ in range(n)]
        read = pair.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        pad: Any = pair.tokenizer.pad_token_id or pair.tokenizer.eos_token_id
        bare.generate(**read, max_new_tokens=N_NEW, do_sample=False, pad_token_id=pad)

    with torch.no_grad(), tqdm(disable=True):
        compare(
            f"{N_EDITS} edits of {n_prompts} prompts",
            lambda: complete(under, shares=True),
            {
                f"bare generate of {N_EDITS * n_prompts} rows": lambda: generate(N_EDITS),
                "rows that share nothing": lambda: complete(under, shares=False),
            },
            n_rounds,
        )
        same = [
            a == b for n in under for a, b in zip(*(w[n] for w in written.values()), strict=True)
        ]
        print(f"{sum(same)} of {len(same)} completions the same")
        compare(
            f"one edit of {n_prompts} prompts",
            lambda: complete(one, shares=True),
            {
                "complete without": lambda: dl.complete(pair, prompts),
                "bare generate": lambda: generate(1),
            },
            n_rounds,
        )
        few = chosen[:2]
        batches = [
            (tokens, labels)
            for which in COMPLETIONS
            for _, tokens, labels in encoded(pair, few, which, len(few), "encoding")
        ]

        def passes() -> None:
            for _ in range(N_FEATURES):
                for tokens, labels in batches:
                    score_completions(
                        pair, tokens, labels, model=lambda ids, **kept: bare(ids, **kept).logits
                    )

        features = list(range(N_FEATURES))
        compare(
            f"{N_FEATURES} features ablated on {len(few)} prompts",
            lambda: dl.effects.ablation_effects(pair, sae, features, few),
            {f"{N_FEATURES} plain passes": passes},
            n_rounds,
        )
    eight = chosen[:8]
    plain = forward_and_backward(pair, bare, eight)
    compare(
        f"{sae.cfg.d_sae} features attributed on {len(eight)} prompts",
        lambda: dl.attribute_features(pair, sae, eight),
        {"a forward and a backward pass": plain},
        n_rounds,
    )
    compare(
        f"an order in {N_ROUNDS} rounds",
        lambda: dl.greedy_order(pair, sae, eight, n_features=16, n_rounds=N_ROUNDS),
        {f"{N_ROUNDS} forward and backward passes": lambda: [plain() for _ in range(N_ROUNDS)]},
        n_rounds,
    )


if __name__ == "__main__":
    main()
