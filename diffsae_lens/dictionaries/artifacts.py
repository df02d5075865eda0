"""Load, export and publish trained dictionaries, with SAELens's own loaders."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, upload_saes_to_huggingface
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError

from diffsae_lens._artifact import MANIFEST, open_artifact, read_json
from diffsae_lens._checks import check_finite
from diffsae_lens._hosts import registered_architectures
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries.fits import check_fits
from diffsae_lens.dictionaries.record import DictionaryRecord
from diffsae_lens.pair.hooked import HookedModelPair


@typed
def load(
    path_or_repo: str | Path,
    *,
    sae_id: str = ".",
    pair: HookedModelPair | None = None,
    device: str | None = None,
) -> SAE:
    """Load a trained dictionary from a folder or the Hugging Face hub.

    Args:
        path_or_repo: a folder (`~` is the home folder), or a repository `owner/name`. What looks like
            a path, or begins with a folder that is here, is not looked for at the hub.
        sae_id: folder within the repository.
        pair: checks at once that the dictionary fits it.
        device: a torch device; the pair's by default, else the CPU.

    Returns:
        The inference dictionary.

    Raises:
        TypeError: `path_or_repo` is not a path.
        FileNotFoundError: no such folder, no dictionary in it, or no such repository.
        ValueError: a pickle, a class that is not registered, damaged weights or some that are not
            finite, or a dictionary of another pair.

    Examples:
        >>> load("runs/demo/dictionaries/crosscoder-18", pair=pair)          # doctest: +SKIP
    """
    if not isinstance(path_or_repo, str | Path) or not str(path_or_repo):
        raise TypeError(
            f"`path_or_repo` must be a folder or a repository, got {path_or_repo!r}; give its path"
        )
    folder = Path(path_or_repo).expanduser()
    device = device or ("cpu" if pair is None else str(pair.device))
    if folder.is_dir():
        dictionary = _from_folder(folder, device)
    elif _is_local(str(path_or_repo), folder):
        raise FileNotFoundError(_what_is_there(folder))
    else:
        dictionary = _from_hub(str(path_or_repo), sae_id, device)
    check_weights(dictionary)
    if pair is not None:
        check_fits(pair, dictionary)
    return dictionary


def check_weights(dictionary: SAE) -> None:
    """Refuse a dictionary with weights that are NaN or infinite, as a diverged training leaves them.

    Raises:
        ValueError: names the first of them.
    """
    for name, tensor in dictionary.state_dict().items():
        check_finite(f"dictionary.{name}", tensor)


def _is_local(given: str, folder: Path) -> bool:
    """Whether a path that does not exist was meant, and not a repository."""
    looks_local = given.startswith((".", "/", "~")) or "\\" in given or folder.is_absolute()
    return looks_local or given.count("/") != 1 or folder.exists() or Path(folder.parts[0]).is_dir()


def _what_is_there(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file, not a folder; give the folder that holds the dictionary"
    above = next((parent for parent in folder.parents if parent.is_dir()), None)
    found = sorted(entry.name for entry in above.iterdir() if entry.is_dir())[:8] if above else []
    return (
        f"the folder {folder} does not exist; {above} holds the folders {found} (a repository of the "
        "Hugging Face hub would be 'owner/name')"
    )


def _from_folder(folder: Path, device: str) -> SAE:
    _check_folder(folder)
    if (folder / MANIFEST).exists():
        open_artifact(folder)
    try:
        return SAE.load_from_disk(folder, device=device)
    except SafetensorError as error:
        raise ValueError(
            f"{folder / SAE_WEIGHTS_FILENAME} is damaged ({error}); get or train the dictionary again"
        ) from error


def _from_hub(repo_id: str, sae_id: str, device: str) -> SAE:
    try:
        return SAE.from_pretrained(repo_id, sae_id, device=device)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{repo_id!r} is not a folder here, and as a repository of the Hugging Face hub its "
            f"dictionary {sae_id!r} is not to be had: {error}"
        ) from error


def _check_folder(folder: Path) -> None:
    names = {entry.name for entry in folder.iterdir()}
    if not {SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME} <= names:
        pickles = sorted(n for n in names if n.endswith((".pt", ".pth", ".bin", ".pkl", ".ckpt")))
        if pickles:
            raise ValueError(
                f"{folder} holds {pickles}, which are pickles and can run code when they are read; "
                f"have the dictionary saved again as {SAE_WEIGHTS_FILENAME} with {SAE_CFG_FILENAME}"
            )
        raise FileNotFoundError(
            f"{folder} holds no dictionary: it takes {SAE_CFG_FILENAME} and "
            f"{SAE_WEIGHTS_FILENAME}, there is {sorted(names)}"
        )
    architecture = read_json(folder / SAE_CFG_FILENAME).get("architecture")
    inference, training = registered_architectures()
    if architecture in inference:
        return
    if architecture in training:
        raise ValueError(
            f"{folder} holds a training checkpoint ({architecture!r}); load it with "
            "`sae_lens.TrainingSAE.load_from_disk`, or save it with `save_inference_model`"
        )
    raise ValueError(
        f"{folder} needs the architecture {architecture!r}, which is not registered with SAELens; "
        "import (or upgrade) the package that defines it before loading. Registered are "
        f"{sorted(inference)}"
    )


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
        raise ValueError(
            f"`dictionary` must have JumpReLU codes, got {dictionary.cfg.architecture()!r}, which "
            "SAELens loads as it is"
        )
    check_weights(dictionary)
    path = Path(path).expanduser()
    if path.is_file():
        raise FileExistsError(f"`path` {path} is a file; name a folder for the dictionary")
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
        raise TypeError(
            f"`dictionaries` must be a mapping of names to folders, got {type(dictionaries).__name__}"
        )
    if not dictionaries:
        raise ValueError("`dictionaries` is empty: name at least one folder")
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}")
    folders = {name: Path(folder).expanduser() for name, folder in dictionaries.items()}
    configs = {}
    for name, folder in folders.items():
        _check_folder(folder)
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
        raise ValueError("`configs` is empty: a card describes at least one dictionary")
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
