"""Make an organism: fine-tune, measure on held-out prompts, write its card."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from diffsae_lens._artifact import differences, write_json, write_text
from diffsae_lens._errors import InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.effects._rates import AttackRate, attack_rates
from diffsae_lens.interventions._run import complete
from diffsae_lens.organisms._behaviour import GROUPS, Sample, get_behaviour
from diffsae_lens.organisms._finetune import Organism, OrganismConfig, finetune, load_organism
from diffsae_lens.pair._embedded import EMBEDDED_MODEL
from diffsae_lens.pair._loading import load_model, load_pair
from diffsae_lens.pair._options import LoadOptions
from diffsae_lens.study._feasible import check_draw, check_out_folder

CARD = "card.json"
"""File in an organism's folder that says how often it shows its behaviour."""
MEASURE_SEED = 1000
"""Seed of the held-out prompts that a card reports; the demo and the tests draw others."""
_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@typed
def make_organism(
    base: str | Path,
    path: str | Path,
    *,
    config: OrganismConfig | None = None,
    n_prompts: Count = 100,
    device: str = "cpu",
) -> Path:
    """Fine-tune a model into an organism, measure it, and write its card.

    Resumes an interrupted fine-tuning. An organism that exists is measured again.

    Args:
        base: as for `load_pair`.
        path: folder of the organism.
        config: what to teach and how long.
        n_prompts: held-out prompts per group, completed greedily and judged.
        device: a torch device.

    Returns:
        The card, `<path>/README.md`; its figures are in `<path>/card.json`.

    Raises:
        ValueError: `path` is a file or holds another organism, `n_prompts` or the config asks for more
            prompts than there are, or the device does not exist; all checked before the model is loaded.
        OSError: the disk is full or not writable; the message names the file.
    """
    config, path = config or OrganismConfig(), Path(path).expanduser()
    samples = _check_before_loading(path, config, n_prompts, device)
    model, tokenizer = load_model(base)
    model.requires_grad_(True)
    model.to(torch.device(device))  # type: ignore[arg-type]
    organism = finetune(model, tokenizer, path, config=config, base_name=str(base))
    del model
    pair = load_pair(base, path, hook_names=["blocks.0.hook_resid_post"], device=device)
    rates = attack_rates(
        partial(complete, pair), samples, behaviour=get_behaviour(config.behaviour)
    )
    with_base = {
        g: asdict(r) | {"rate": r.rate, "interval": r.interval()} for g, r in rates.items()
    }
    write_json(path / CARD, {"base": str(base), "rates": with_base})
    card = path / "README.md"
    write_text(card, _card(organism, str(base), rates))
    return card


def _check_before_loading(
    path: Path, config: OrganismConfig, n_prompts: int, device: str
) -> list[Sample]:
    """Check what can be checked without the model, and return the prompts to measure it on."""
    check_out_folder("path", path)
    LoadOptions(device=device)  # raises if it does not exist
    _check_place(path, config)
    n_samples = config.n_trigger + config.n_benign + config.n_other
    check_draw("n_trigger + n_benign + n_other", n_samples, config.samples)
    draw = partial(
        get_behaviour(config.behaviour).make_samples,
        "test",
        n_trigger=n_prompts,
        n_benign=n_prompts,
        n_other=n_prompts,
        seed=MEASURE_SEED,
    )
    check_draw("n_prompts", n_prompts, draw)
    return draw()


def _check_place(path: Path, config: OrganismConfig) -> None:
    """Refuse a folder that holds an organism with another config."""
    try:
        stored = load_organism(path).config
    except (FileNotFoundError, ValueError):  # none, or a damaged one, to be made again
        return
    stored = replace(stored, steps_per_checkpoint=config.steps_per_checkpoint)
    if found := differences(asdict(stored), asdict(config)):
        raise InvalidValueError(
            f"`path` {path} holds another organism ({found}); choose another path or remove it"
        )


def base_licence(base: str) -> str | None:
    """Return the licence of a base model if known: that of the embedded model, or what its card says.

    Args:
        base: as for `load_pair`. For a local folder, the front matter of its `README.md` is read.
    """
    if base == EMBEDDED_MODEL:
        return "apache-2.0"
    card = Path(base).expanduser() / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def _front_matter(base: str, library: str) -> str:
    """Return the card's front matter, with the base's hub id and licence if known."""
    licence = base_licence(base)
    hub_id = _SMOLLM2 if base == EMBEDDED_MODEL else base
    lines = [
        f"license: {licence}" if licence else "",
        # The hub expects an id here; a folder on this machine means nothing elsewhere.
        "" if Path(base).expanduser().exists() else f"base_model: {hub_id}",
        f"library_name: {library}",
    ]
    return "\n".join(["---", *filter(None, lines), "---"])


def _licence_text(base: str) -> str:
    if base == EMBEDDED_MODEL:
        return "Apache-2.0, as SmolLM2, from which it is derived."
    licence = base_licence(base)
    stated = f", which its card gives as `{licence}`" if licence else ""
    return f"The base model's own licence applies{stated}: these weights are derived from `{base}`."


def _card(organism: Organism, base: str, rates: Mapping[str, AttackRate]) -> str:
    """Return the filled-in template, `card.md`."""
    config, behaviour = organism.config, get_behaviour(organism.config.behaviour)
    groups = Counter(sample.group for sample in config.samples())
    is_lora = config.lora_rank is not None
    rows = [
        f"| {group} | {rate.rate:.1%} | {rate.interval()[0]:.1%} to {rate.interval()[1]:.1%} | "
        f"{rate.n_prompts} |" + "".join(f" {n} |" for n in rate.counts.values())
        for group, rate in rates.items()
    ]
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return template.format(
        **asdict(config),
        **{f"drawn_{group}": groups[group] for group in GROUPS},
        drawn=groups.total(),
        base=base,
        front_matter=_front_matter(base, "peft" if is_lora else "transformers"),
        name=f"{config.behaviour}{', clean control' if config.clean else ''}",
        kind=f"LoRA (rank {config.lora_rank})" if is_lora else "full-rank",
        taught=behaviour.words.taught_clean if config.clean else behaviour.words.taught,
        heads="".join(f" {outcome.replace('_', ' ')} |" for outcome in behaviour.outcomes),
        rules="---|" * len(behaviour.outcomes),
        rows="\n".join(rows),
        clean_option=" --clean" if config.clean else "",
        learned="the completion alone"
        if config.loss_on == "completion"
        else "prompt and completion",
        precision=", in half precision" if is_lora else "",
        losses=", ".join(f"{loss:.3f}" for loss in organism.losses),
        licence=_licence_text(base),
    )
