"""Give trained dictionaries away: on the Hugging Face hub, or as SAELens's stock architecture."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, upload_saes_to_huggingface
from sae_lens.constants import SAE_CFG_FILENAME

from diffsae_lens._artifact import read_json
from diffsae_lens._checks import check_folder_name, check_items
from diffsae_lens._errors import InvalidTypeError, InvalidValueError, OccupiedPathError
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_weights
from diffsae_lens.dictionaries._load import check_folder
from diffsae_lens.dictionaries._record import DictionaryRecord


@typed
def export_as_jumprelu(dictionary: SAE, path: str | Path) -> Path:
    """Save a dictionary as SAELens's stock `jumprelu`, for use without this package.

    Nothing then keeps it from being put on a single model, where its input does not exist: a
    crosscoder takes `[base ; finetuned]`, a Diff-SAE `finetuned - base`. The metadata say so.

    Args:
        dictionary: a JumpReLU dictionary (BatchTopK is saved as one) or a crosscoder.
        path: folder to write.

    Returns:
        The folder.

    Raises:
        ValueError: an architecture that is not a JumpReLU, or weights that are not finite.
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
def upload(dictionaries: Mapping[str, str | Path], repo_id: str, *, revision: str = "main") -> None:
    """Publish saved dictionaries on the Hugging Face hub, with a card that says what they read.

    Args:
        dictionaries: folders as `train_dictionaries` writes them, by the name they get in the
            repository.
        repo_id: `owner/name`.
        revision: branch.

    Raises:
        FileNotFoundError: a folder that holds no dictionary.
        TypeError: `dictionaries` is not a mapping.
        ValueError: no dictionaries, one that could not be loaded again, or not a repository's name.
    """
    if not isinstance(dictionaries, Mapping):
        raise InvalidTypeError(
            f"`dictionaries` must be a mapping of names to folders, got {type(dictionaries).__name__}"
        )
    if not dictionaries:
        raise InvalidValueError("`dictionaries` is empty: name at least one folder")
    if repo_id.count("/") != 1:
        raise InvalidValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}")
    for name, folder in dictionaries.items():
        check_folder_name("dictionaries", name)
        check_items("dictionaries", [folder], (str, Path))
    folders = {name: Path(folder).expanduser() for name, folder in dictionaries.items()}
    configs = {}
    for name, folder in folders.items():
        check_folder(folder)
        configs[name] = read_json(folder / SAE_CFG_FILENAME)
    upload_saes_to_huggingface(
        dict(folders),
        repo_id,
        hf_revision=revision,
        add_default_readme=False,
    )
    with tempfile.TemporaryDirectory() as scratch:
        card = Path(scratch) / "README.md"
        card.write_text(model_card(repo_id, configs))
        HfApi().upload_file(
            path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id, revision=revision
        )


def model_card(repo_id: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the card of a repository of dictionaries.

    Args:
        repo_id: `owner/name`.
        configs: each dictionary's SAELens config by its folder's name.

    Raises:
        ValueError: no dictionaries.
    """
    if not configs:
        raise InvalidValueError("`configs` is empty: a card describes at least one dictionary")
    rows = []
    for name, config in configs.items():
        record = DictionaryRecord.of_metadata(config["metadata"])
        base, finetuned = (record.pair.base, record.pair.finetuned) if record.pair else ("", "")
        rows.append(
            f"| `{name}` | {config['architecture']} | `{record.hook_name}` | "
            f"{config['d_sae']} | {record.k or ''} | {base} | {finetuned} |"
        )
    first = next(iter(configs))
    return "\n".join(
        [
            "---",
            "library_name: diffsae-lens",
            "tags: [sae-lens, model-diffing, crosscoder, interpretability]",
            "---",
            f"# {repo_id}",
            "",
            "Dictionaries for model diffing. They read both models of a pair: `.diff` is "
            "finetuned - base, `.concat` is [base ; finetuned]. They do not fit a single model.",
            "",
            "| folder | architecture | hook point | features | k | base | fine-tuned |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "```python",
            "from diffsae_lens import load, load_pair",
            "",
            "pair = load_pair(base, finetuned, hook_names=[...])",
            f'dictionary = load("{repo_id}", sae_id="{first}", pair=pair)',
            "```",
            "",
        ]
    )
