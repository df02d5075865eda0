"""SAELens's published dictionaries of one model, read on one side of a pair."""

from dataclasses import replace
from pathlib import Path

from sae_lens import SAE

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._load import from_hub, load
from diffsae_lens.dictionaries._record import DictionaryRecord
from diffsae_lens.pair._hook import VirtualHook


def read(
    path_or_repo: str | Path, sae_id: str, hook: VirtualHook | None, device: str
) -> tuple[SAE, DictionaryRecord]:
    """Return a dictionary of one model and its record, on that model's view of a pair.

    Raises:
        ValueError: a hook point that does not belong to a single model, or not the one it was trained on.
        FileNotFoundError: no such folder, repository or release.
    """
    if hook is None or hook.view not in ("base", "finetuned"):
        raise InvalidValueError(
            "`hook` must be '<site>.base' or '<site>.finetuned' for a SAELens dictionary of one model, got "
            f"{hook and hook.name!r}; one trained on a pair's own hook is loaded with `load`"
        )
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        found = load(folder / sae_id, device=device)
    else:
        found = from_hub(str(path_or_repo), sae_id, device)
    before = DictionaryRecord.of(found)
    if before.hook_name not in (None, hook.site):
        raise InvalidValueError(
            f"`hook` must be of the site that {path_or_repo} was trained on, {before.hook_name!r}, got "
            f"{hook.name!r}"
        )
    if before.hook_name_out == before.hook_name is not None:
        found.cfg.metadata.hook_name_out = hook.name
    trained_on = before.model_name or "a model that its metadata do not name"
    assumption = f"trained on {trained_on} and read here on the pair's {hook.view} model"
    return found, replace(
        before,
        hook_name=hook.name,
        view=hook.view,
        source_format="saelens",
        assumptions=(assumption,),
    )
