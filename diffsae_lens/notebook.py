"""The IPython extension: SAELens dictionaries show what they are and what they were trained on."""

from typing import Any

from diffsae_lens._display import facts_html


def dictionary_html(dictionary: Any) -> str:
    """Return what a SAELens dictionary is and what it was trained on."""
    cfg = dictionary.cfg
    stored = cfg.metadata.diffsae_lens or {}
    pair = stored.get("pair") or {}
    facts = {
        "hook point": cfg.metadata.hook_name,
        "base": pair.get("base"),
        "finetuned": pair.get("finetuned", cfg.metadata.model_name),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "k": stored.get("k", getattr(cfg, "k", None)),
        "L0 on held-out tokens": stored.get("l0_held_out"),
        "leading tokens left out": stored.get("skip_positions"),
        "seed": stored.get("seed"),
    }
    return facts_html(f"{cfg.architecture()} dictionary", facts)


def load_ipython_extension(shell: Any) -> None:
    """Show SAELens dictionaries as tables from now on: `%load_ext diffsae_lens`."""
    formatter = shell.display_formatter.formatters["text/html"]
    formatter.for_type_by_name("sae_lens.saes.sae", "SAE", dictionary_html)


def unload_ipython_extension(shell: Any) -> None:
    """Show them as before: `%unload_ext diffsae_lens`."""
    shell.display_formatter.formatters["text/html"].pop("sae_lens.saes.sae.SAE", None)
