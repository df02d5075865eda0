"""Publish trained dictionaries on the Hugging Face hub, or export them to SAELens's stock architecture."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)

from diffsae_lens._artifact import read_json
from diffsae_lens._checks import check_folder_name, check_items, check_number
from diffsae_lens._display import one_line
from diffsae_lens._errors import (
    FailedRunError,
    InvalidTypeError,
    InvalidValueError,
    OccupiedPathError,
)
from diffsae_lens._hosts import hub_error
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_weights
from diffsae_lens.dictionaries._load import load
from diffsae_lens.dictionaries._record import DictionaryRecord

_FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, RUNNER_CFG_FILENAME)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_RECORDED = "not recorded"


@typed
def export_as_jumprelu(dictionary: SAE, path: str | Path) -> Path:
    """Save a dictionary as SAELens's stock `jumprelu`, for use without this package.

    Nothing then prevents its use on a single model, which does not provide its input: a crosscoder takes
    `[base ; finetuned]`, a Diff-SAE `finetuned - base`. The metadata say so.

    Args:
        dictionary: a JumpReLU dictionary (BatchTopK is saved as one) or a crosscoder.
        path: folder to write.

    Returns:
        The folder.

    Raises:
        ValueError: an architecture other than JumpReLU, or weights that are not finite.
    """
    if not isinstance(dictionary, JumpReLUSAE):
        raise InvalidValueError(
            f"`dictionary` must have JumpReLU codes, got {dictionary.cfg.architecture()!r}, which "
            "SAELens loads as it is"
        )
    check_weights(dictionary)
    path = Path(path).expanduser()
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder for the dictionary")
    config = dictionary.cfg.to_dict() | {"architecture": JumpReLUSAEConfig.architecture()}
    stock = JumpReLUSAE(JumpReLUSAEConfig.from_dict(config))
    stock.load_state_dict(dictionary.state_dict())
    stock.save_model(path)
    return path


@typed
def upload(
    dictionaries: Mapping[str, str | Path],
    repo_id: str,
    *,
    license: str,
    variance_explained: Mapping[str, Mapping[str, float]] | None = None,
    revision: str = "main",
) -> str:
    """Publish saved dictionaries on the Hugging Face hub, with a card that says what they read.

    Each is loaded first, so whatever is published loads again. Only safetensors and configs are sent, in a
    single commit: the repository gets all of it or stays as it was.

    Args:
        dictionaries: folders as `train_dictionaries` writes them, by their name in the repository.
        repo_id: `owner/name`; created if it does not exist.
        license: the hub's identifier of a licence, such as `mit`. The models' own licences may bind you.
        variance_explained: `reconstruction(...).variance_explained` of each dictionary, by name.
        revision: branch.

    Returns:
        The commit's URL.

    Raises:
        FileNotFoundError: a folder that holds no dictionary.
        TypeError: `dictionaries` is not a mapping.
        ValueError: no dictionaries, one that cannot be loaded, no licence, or an invalid repository name.
        RuntimeError: the hub refused or could not be reached.
    """
    if not isinstance(dictionaries, Mapping):
        raise InvalidTypeError(
            f"`dictionaries` must be a mapping of names to folders, got {type(dictionaries).__name__}"
        )
    if not dictionaries:
        raise InvalidValueError("`dictionaries` is empty: name at least one folder")
    if not _REPOSITORY.fullmatch(repo_id):
        raise InvalidValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}")
    operations, configs = [], {}
    for name, folder in dictionaries.items():
        check_folder_name("dictionaries", name)
        check_items("dictionaries", [folder], (str, Path))
        folder = Path(folder).expanduser()
        load(folder)
        configs[name] = read_json(folder / SAE_CFG_FILENAME)
        operations += [
            CommitOperationAdd(path_in_repo=f"{name}/{file}", path_or_fileobj=folder / file)
            for file in _FILES
            if (folder / file).is_file()
        ]
    card = model_card(repo_id, configs, license=license, variance_explained=variance_explained)
    operations.append(CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.encode()))
    hub = HfApi()
    try:
        hub.create_repo(repo_id, exist_ok=True)
        return hub.create_commit(
            repo_id, operations, commit_message="Upload dictionaries", revision=revision
        ).commit_url
    except (hub_error(), OSError, RuntimeError, ValueError) as error:
        cause = f" ({error.__cause__})" if isinstance(error, RuntimeError) else ""
        raise FailedRunError(
            f"{hub.endpoint} did not confirm the upload to {repo_id!r}: {one_line(f'{error}{cause}')}; "
            "it is one commit, so the repository has all of it or is as it was. Log in with `hf auth "
            "login` if that is what it asks for, then call it again"
        ) from error


def model_card(
    repo_id: str,
    configs: Mapping[str, Mapping[str, Any]],
    *,
    license: str,
    variance_explained: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Return the model card of a repository of dictionaries.

    Args:
        repo_id: `owner/name`.
        configs: each dictionary's SAELens config, by folder name.
        license: the hub's identifier of a licence.
        variance_explained: variance explained, by dictionary and part.

    Raises:
        ValueError: no dictionaries, no licence, or a variance explained of another dictionary.
    """
    if not configs:
        raise InvalidValueError("`configs` is empty: a card describes at least one dictionary")
    if not isinstance(license, str) or not re.fullmatch(r"[a-z0-9.-]+", license):
        raise InvalidValueError(
            f"`license` must be an identifier of the hub, such as 'mit', got {license!r}"
        )
    explained = {} if variance_explained is None else variance_explained
    if not isinstance(explained, Mapping) or not set(explained) <= set(configs):
        raise InvalidValueError(
            f"`variance_explained` must have names of `dictionaries` ({sorted(configs)}), got "
            f"{explained!r}"
        )
    records = {name: DictionaryRecord.of_metadata(c["metadata"]) for name, c in configs.items()}
    models = [
        model
        for record in records.values()
        if record.pair is not None
        for model in (record.pair.base, record.pair.finetuned)
        if _REPOSITORY.fullmatch(model) and not Path(model).exists()
    ]
    first = next(iter(records))
    front = {
        "library_name": "diffsae-lens",
        "license": license,
        "tags": ["sae-lens", "model-diffing", "crosscoder", "interpretability"],
    } | ({"base_model": list(dict.fromkeys(models))} if models else {})
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            "---",
            f"# {repo_id}",
            "",
            "Dictionaries for model diffing. They read both models of a pair: `.diff` is "
            "finetuned - base, `.concat` is [base ; finetuned]. They do not fit a single model. "
            f"Licence: {license}.",
            "",
            "| folder | architecture | hook point | features | k | L0 | variance explained "
            "| base | fine-tuned |",
            "|---|---|---|---|---|---|---|---|---|",
            *(
                _row(name, configs[name], records[name], explained.get(name, {}))
                for name in configs
            ),
            "",
            "L0 is the mean number of active features per token. Variance explained is 1 - "
            "|x - x_hat|^2 / |x - mean|^2 on held-out tokens, of each part that a dictionary reads "
            "or implies.",
            "",
            "```python",
            "import diffsae_lens as dl",
            "",
            *_loading(repo_id, first, records[first]),
            "```",
            "",
        ]
    )


def _row(
    name: str,
    config: Mapping[str, Any],
    record: DictionaryRecord,
    explained: Mapping[str, float],
) -> str:
    parts = [f"{p} {check_number('variance_explained', v):.3g}" for p, v in explained.items()]
    cells = [
        f"`{name}`",
        config["architecture"],
        f"`{record.hook_name}`",
        config["d_sae"],
        _NOT_RECORDED if record.k is None else f"{record.k:g}",
        _NOT_RECORDED if record.l0 is None else f"{record.l0:.3g}",
        ", ".join(parts) or "not measured",
        *_models(record),
    ]
    return f"| {' | '.join(one_line(str(cell)).replace('|', chr(92) + '|') for cell in cells)} |"


def _models(record: DictionaryRecord) -> tuple[str, str]:
    """The models' names; of a local path only the last part, so that no path is published."""
    if record.pair is None:
        return _NOT_RECORDED, _NOT_RECORDED
    names = (record.pair.base, record.pair.finetuned)
    base, finetuned = (Path(n).name if Path(n).is_absolute() else n for n in names)
    return base, finetuned


def _loading(repo_id: str, name: str, record: DictionaryRecord) -> list[str]:
    base, finetuned = _models(record)
    site = record.hook.site if record.hook else record.hook_name
    return [
        f"pair = dl.load_pair({base!r}, {finetuned!r}, hook_names=[{site!r}])",
        f'dictionary = dl.load("{repo_id}", sae_id="{name}", pair=pair)',
    ]
