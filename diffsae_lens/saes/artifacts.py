"""Load, check, export and publish trained dictionaries, with SAELens's own loaders."""

import json
import operator
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, upload_saes_to_huggingface
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from diffsae_lens.pair import HookedModelPair


def load(
    path_or_repo: str | Path,
    *,
    sae_id: str = ".",
    pair: HookedModelPair | None = None,
    device: str | None = None,
) -> SAE:
    """Load a trained dictionary from a folder or the Hugging Face hub.

    Args:
        path_or_repo: a folder, or a repository `owner/name`.
        sae_id: folder within the repository.
        pair: checks at once that the dictionary fits it.
        device: a torch device; the pair's by default, else the CPU.

    Returns:
        The inference dictionary.

    Raises:
        FileNotFoundError: no such folder, or no dictionary in it.
        ValueError: a pickle, a class that is not registered, or a dictionary of another pair.

    Examples:
        >>> load("runs/demo/dictionaries/diff-sae-18", pair=pair)          # doctest: +SKIP
    """
    folder = Path(path_or_repo)
    device = device or ("cpu" if pair is None else str(pair.device))
    if folder.is_dir():
        _check_folder(folder)
        dictionary = SAE.load_from_disk(folder, device=device)
    elif len(folder.parts) == 2 and not folder.is_absolute():
        dictionary = SAE.from_pretrained(str(path_or_repo), sae_id, device=device)
    else:
        raise FileNotFoundError(
            f"{path_or_repo} is no folder, and no repository (which would be 'owner/name')"
        )
    if pair is not None:
        check_fits(pair, dictionary)
    return dictionary


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
            f"{folder} holds no dictionary: {SAE_CFG_FILENAME} and {SAE_WEIGHTS_FILENAME} are "
            f"wanted, there is {sorted(names)}"
        )
    architecture = json.loads((folder / SAE_CFG_FILENAME).read_text()).get("architecture")
    if architecture in SAE_CLASS_REGISTRY:
        return
    if architecture in SAE_TRAINING_CLASS_REGISTRY:
        raise ValueError(
            f"{folder} holds a training checkpoint ({architecture!r}); load it with "
            "`sae_lens.TrainingSAE.load_from_disk`, or save it with `save_inference_model`"
        )
    raise ValueError(
        f"{folder} needs the architecture {architecture!r}, which is not registered with SAELens; "
        "import (or upgrade) the package that defines it before loading. Registered are "
        f"{sorted(SAE_CLASS_REGISTRY)}"
    )


def check_fits(pair: HookedModelPair, dictionary: SAE) -> str:
    """Return the virtual hook point a dictionary reads, having checked that it is this pair's.

    A folder's models are compared by the folder's name, so they may have moved.

    Raises:
        ValueError: no hook name in the metadata or none of this pair's, another width, trained on
            other models, or a mirrored pair; says both sides.

    Warns:
        UserWarning: the models are the same, their revisions are not.
    """
    hook_name = dictionary.cfg.metadata.hook_name
    if pair.is_mirrored:
        raise ValueError(
            "a mirrored pair's `.diff` is base - finetuned, which no dictionary was trained on; use the "
            "pair it was made of"
        )
    if hook_name is None:
        raise ValueError(
            "the dictionary's metadata names no hook point; set `dictionary.cfg.metadata.hook_name` "
            f"to one of {sorted(pair.hook_dict)}"
        )
    pair.check_hook_name(hook_name)
    if pair.d_in(hook_name) != dictionary.cfg.d_in:
        raise ValueError(
            f"the dictionary reads {dictionary.cfg.d_in} wide activations, but {hook_name} of this "
            f"pair is {pair.d_in(hook_name)} wide: it was trained on another model"
        )
    trained_on = (dictionary.cfg.metadata.diffsae_lens or {}).get("pair")
    if trained_on is None:
        return hook_name
    used_with = asdict(pair.metadata)
    for name in ("base", "finetuned"):
        if Path(trained_on[name]).name != Path(used_with[name]).name:
            raise ValueError(
                f"the dictionary was trained on {trained_on['base']!r} and "
                f"{trained_on['finetuned']!r}, but the pair is {used_with['base']!r} and "
                f"{used_with['finetuned']!r}"
            )
        if trained_on[f"{name}_revision"] != used_with[f"{name}_revision"]:
            warnings.warn(
                f"the dictionary was trained on revision {trained_on[f'{name}_revision']} of "
                f"{trained_on[name]!r}, the pair has {used_with[f'{name}_revision']}",
                stacklevel=3,
            )
    return hook_name


def check_features(dictionary: SAE, features: Sequence[int]) -> list[int]:
    """Return indices of features as a list of whole numbers (a tensor's, too).

    Raises:
        ValueError: one that the dictionary does not have, or that is repeated; says which.
        TypeError: what is no whole number.
    """
    indices = [operator.index(feature) for feature in features]
    d_sae = dictionary.cfg.d_sae
    if not all(0 <= index < d_sae for index in indices):
        raise ValueError(f"`features`: feature indices must lie in [0, {d_sae}), got {indices}")
    if len(set(indices)) != len(indices):
        raise ValueError(f"`features`: feature indices are repeated in {indices}")
    return indices


def skip_positions(dictionary: SAE) -> int:
    """Return how many leading tokens a dictionary was not trained on; 0 if its metadata do not say."""
    return (dictionary.cfg.metadata.diffsae_lens or {}).get("skip_positions", 0)


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
        ValueError: an architecture that is no JumpReLU.
    """
    if not isinstance(dictionary, JumpReLUSAE):
        raise ValueError(
            f"`dictionary` must have JumpReLU codes, got {dictionary.cfg.architecture()!r}, which "
            "SAELens loads as it is"
        )
    config = dictionary.cfg.to_dict() | {"architecture": JumpReLUSAEConfig.architecture()}
    stock = JumpReLUSAE(JumpReLUSAEConfig.from_dict(config))
    stock.load_state_dict(dictionary.state_dict())
    stock.save_model(path)
    return Path(path)


def upload(dictionaries: Mapping[str, str | Path], repo_id: str, *, revision: str = "main") -> None:
    """Publish saved dictionaries on the Hugging Face hub, with a card that says what they read.

    Args:
        dictionaries: folders as `train_dictionaries` writes them, by the name they get in the
            repository.
        repo_id: `owner/name`.
        revision: branch.

    Raises:
        FileNotFoundError: a folder that holds no dictionary.
        ValueError: no dictionaries, or one that could not be loaded again.
    """
    if not dictionaries:
        raise ValueError("`dictionaries` is empty: name at least one folder")
    configs = {}
    for name, folder in dictionaries.items():
        _check_folder(Path(folder))
        configs[name] = json.loads((Path(folder) / SAE_CFG_FILENAME).read_text())
    upload_saes_to_huggingface(
        {name: Path(folder) for name, folder in dictionaries.items()},
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
    """
    rows = []
    for name, config in configs.items():
        metadata = config["metadata"]
        ours = metadata.get("diffsae_lens") or {}
        pair = ours.get("pair") or {}
        rows.append(
            f"| `{name}` | {config['architecture']} | `{metadata.get('hook_name')}` | "
            f"{config['d_sae']} | {ours.get('k', '')} | {pair.get('base', '')} | "
            f"{pair.get('finetuned', '')} |"
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
