"""Notebook display of dictionaries, once `%load_ext diffsae_lens` has been run."""

from typing import Any

from sae_lens import SAE

from diffsae_lens import _hosts
from diffsae_lens._display import facts_html
from diffsae_lens.dictionaries._record import DictionaryRecord


def dictionary_html(dictionary: SAE) -> str:
    """Return an HTML table of what a SAELens dictionary is and what it was trained on."""
    cfg, record = dictionary.cfg, DictionaryRecord.of(dictionary)
    facts = {
        "hook point": record.hook_name,
        "base": record.pair and record.pair.base,
        "finetuned": record.pair.finetuned if record.pair else record.model_name,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "k": record.k,
        "L0": record.l0,
        "leading tokens left out": record.tokens.skip_positions,
        "seed": record.seed,
    }
    return facts_html(f"{cfg.architecture()} dictionary", facts)


def load_ipython_extension(shell: Any) -> None:
    """Show SAELens dictionaries as tables from now on: `%load_ext diffsae_lens`."""
    _hosts.show_as_html(shell, "sae_lens.saes.sae", "SAE", dictionary_html)


def unload_ipython_extension(shell: Any) -> None:
    """Show SAELens dictionaries as before: `%unload_ext diffsae_lens`."""
    _hosts.show_as_before(shell, "sae_lens.saes.sae", "SAE")
