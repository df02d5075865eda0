"""Load trained dictionaries with SAELens's own loaders, and explain what is wrong when they cannot."""

from pathlib import Path

from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError

from diffsae_lens._artifact import MANIFEST, open_artifact, read_json
from diffsae_lens._errors import InvalidTypeError, InvalidValueError, MissingFileError
from diffsae_lens._hosts import registered_architectures
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._fits import check_fits, check_weights
from diffsae_lens.pair._hooked import HookedModelPair


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
        path_or_repo: a folder (`~` is the home folder), or a repository `owner/name`. A value that looks
            like a path, or begins with an existing folder, is not looked up on the hub.
        sae_id: folder within the repository.
        pair: if given, check that the dictionary fits it.
        device: a torch device; the pair's by default, else the CPU.

    Returns:
        The inference dictionary.

    Raises:
        TypeError: `path_or_repo` is not a path.
        FileNotFoundError: no such folder, no dictionary in it, or no such repository.
        ValueError: a pickle, an unregistered class, weights that are damaged or not finite, or a
            dictionary of another pair.

    Examples:
        >>> load("runs/mine/crosscoder", pair=pair)                          # doctest: +SKIP
    """
    if not isinstance(path_or_repo, str | Path) or not str(path_or_repo):
        raise InvalidTypeError(
            f"`path_or_repo` must be a folder or a repository, got {path_or_repo!r}; give its path"
        )
    folder = Path(path_or_repo).expanduser()
    device = device or ("cpu" if pair is None else str(pair.device))
    if folder.is_dir():
        dictionary = _from_folder(folder, device)
    elif is_local(str(path_or_repo), folder):
        raise MissingFileError(what_is_there(folder))
    else:
        dictionary = from_hub(str(path_or_repo), sae_id, device)
    check_weights(dictionary)
    if pair is not None:
        check_fits(pair, dictionary)
    return dictionary


def is_local(given: str, folder: Path) -> bool:
    """Whether `given` means a path that does not exist rather than a repository."""
    looks_local = given.startswith((".", "/", "~")) or "\\" in given or folder.is_absolute()
    return looks_local or given.count("/") != 1 or folder.exists() or Path(folder.parts[0]).is_dir()


def what_is_there(folder: Path) -> str:
    """Return a message that a folder does not exist, and which folders do."""
    if folder.exists():
        return f"{folder} is a file, not a folder; give the folder that holds the dictionary"
    above = next((parent for parent in folder.parents if parent.is_dir()), None)
    found = sorted(entry.name for entry in above.iterdir() if entry.is_dir())[:8] if above else []
    return (
        f"the folder {folder} does not exist; {above} holds the folders {found} (a repository of the "
        "Hugging Face hub would be 'owner/name')"
    )


def _from_folder(folder: Path, device: str) -> SAE:
    check_folder(folder)
    if (folder / MANIFEST).exists():
        open_artifact(folder)
    try:
        return SAE.load_from_disk(folder, device=device)
    except SafetensorError as error:
        raise InvalidValueError(
            f"{folder / SAE_WEIGHTS_FILENAME} is damaged ({error}); get or train the dictionary again"
        ) from error


def from_hub(repo_id: str, sae_id: str, device: str) -> SAE:
    """Load a dictionary from a repository, or from a release that SAELens knows by name.

    Raises:
        FileNotFoundError: SAELens cannot load it.
    """
    try:
        return SAE.from_pretrained(repo_id, sae_id, device=device)
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"{repo_id!r} is not a folder here, and as a repository of the Hugging Face hub its "
            f"dictionary {sae_id!r} is not to be had: {error}"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder that SAELens could not load, before it tries.

    Raises:
        FileNotFoundError: it holds no dictionary.
        ValueError: a pickle, a training checkpoint, or an unregistered class.
    """
    names = {entry.name for entry in folder.iterdir()}
    if not {SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME} <= names:
        pickles = sorted(n for n in names if n.endswith((".pt", ".pth", ".bin", ".pkl", ".ckpt")))
        if pickles:
            raise InvalidValueError(
                f"{folder} holds {pickles}, which are pickles and can run code when they are read; "
                f"have the dictionary saved again as {SAE_WEIGHTS_FILENAME} with {SAE_CFG_FILENAME}, or read "
                "what another library wrote with `load_foreign`"
            )
        below = sorted(path.parent.name for path in folder.glob(f"[!.]*/{SAE_WEIGHTS_FILENAME}"))
        there = sorted(name for name in names if not name.startswith("."))
        raise MissingFileError(
            f"{folder} holds no dictionary of its own, but folders of dictionaries: name one of {below}"
            if below
            else f"{folder} holds no dictionary: it takes {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME}, "
            f"there is {there}; what another library wrote is read with `load_foreign`"
        )
    architecture = read_json(folder / SAE_CFG_FILENAME).get("architecture")
    inference, training = registered_architectures()
    if architecture in inference:
        return
    if architecture in training:
        raise InvalidValueError(
            f"{folder} holds a training checkpoint ({architecture!r}); load it with "
            "`sae_lens.TrainingSAE.load_from_disk`, or save it with `save_inference_model`"
        )
    raise InvalidValueError(
        f"{folder} needs the architecture {architecture!r}, which is not registered with SAELens; "
        "import (or upgrade) the package that defines it before loading. Registered are "
        f"{sorted(inference)}"
    )
