"""Find and read the files of a format: tensors by name and shape, without running a pickle's code."""

import pickle
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffsae_lens._artifact import read_json
from diffsae_lens._checks import check_finite
from diffsae_lens._errors import InvalidValueError, MissingFileError
from diffsae_lens.dictionaries._load import is_local, what_is_there

_KNOWN = (
    "model.safetensors", "sae_weights.safetensors", "cc_weights.pt", "model_final.pt", "ae.pt", "model.pt",
    "sae_weights.pt",
)  # fmt: skip
"""Names of weights files, as the formats' own code writes them."""
_ENDINGS = (".safetensors", ".pt")


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """The tensors and settings of a dictionary in a format that is not ours."""

    path: Path
    """The file with the tensors."""
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    """The contents of the settings file beside it; empty if there is none."""
    finetuned_first: bool = False
    """Whether index 0 is the fine-tuned model."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The size of every dimension named so far."""
    _read: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def tensor(self, name: str, shape: str, *, may_be_nan: bool = False) -> Tensor:
        """Return a tensor in float32, the base model first.

        Args:
            name: its key in the file.
            shape: dimensions, such as `2 d D`: 2 is the two models, another number is a size, and a word
                is a size that is the same wherever the word occurs.
            may_be_nan: accept NaN, where it has a meaning.

        Raises:
            ValueError: the tensor is missing, not finite, or of another shape.
        """
        if name not in self.tensors:
            raise self.refusal(f"`{name}`", f"of shape [{shape}]", f"{sorted(self.tensors)} alone")
        tensor = self.tensors[name]
        wanted = [int(d) if d.isdigit() else self.sizes.get(d) for d in shape.split()]
        fits = len(wanted) == tensor.ndim and all(
            size in (None, found) for size, found in zip(wanted, tensor.shape, strict=True)
        )
        if not fits:
            known = ", ".join(f"{d} = {self.sizes[d]}" for d in shape.split() if d in self.sizes)
            expected = f"of shape [{shape}]" + (f" with {known}" if known else "")
            raise self.refusal(f"`{name}`", expected, f"shape {list(tensor.shape)}")
        self.sizes.update(
            {d: n for d, n in zip(shape.split(), tensor.shape, strict=True) if not d.isdigit()}
        )
        self._read.add(name)
        if not may_be_nan:
            check_finite(f"{self.path}: {name}", tensor)
        models = [i for i, d in enumerate(shape.split()) if d == "2" and self.finetuned_first]
        return tensor.float().flip(models)

    def ignore(self, *names: str) -> None:
        """Mark tensors as irrelevant to what the dictionary computes."""
        self._read.update(names)

    def setting(self, name: str, choices: Collection[Any] | None = None) -> Any:
        """Return a setting.

        Raises:
            ValueError: the setting is missing, or not one of the choices.
        """
        if name not in self.config or (choices is not None and self.config[name] not in choices):
            expected = "there" if choices is None else f"one of {list(choices)}"
            found = repr(self.config[name]) if name in self.config else "a file without it"
            raise self.refusal(f"the setting `{name}` beside it", expected, found)
        return self.config[name]

    def check_all_read(self) -> None:
        """Refuse tensors that no reader used, since their effect is unknown.

        Raises:
            ValueError: there are such tensors; names them.
        """
        unknown = sorted(set(self.tensors) - self._read)
        if unknown:
            raise self.refusal("the tensors", "known", f"{unknown}, whose part is not known")

    def refusal(self, what: str, expected: str, got: str) -> ValueError:
        """Return an error that names the file."""
        return InvalidValueError(
            f"{self.path}: {what} must be {expected}, got {got}; get the file again, or say with "
            "`format` what it is"
        )


def open_file(path_or_repo: str | Path, sae_id: str, *, finetuned_first: bool) -> ForeignFile:
    """Read the one dictionary in a folder, a file or a folder of a hub repository.

    Raises:
        FileNotFoundError: no such file, folder or repository, or no weights in it.
        ValueError: several weights files, a pickle that needs code, or damaged files.
    """
    path = Path(path_or_repo).expanduser()
    if not path.exists() and not is_local(str(path_or_repo), path):
        path = _from_hub(str(path_or_repo), sae_id)
    path = path if path.is_file() else path / sae_id
    if not path.exists():
        raise MissingFileError(what_is_there(path))
    folder = path if path.is_dir() else path.parent
    names = {entry.name for entry in folder.iterdir()}
    weights = folder / _choose(names, str(folder)) if path.is_dir() else path
    settings = _settings(names, weights.name)
    return ForeignFile(
        path=weights,
        tensors=read_tensors(weights),
        config=_read_settings(folder / settings) if settings else {},
        finetuned_first=finetuned_first,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors by name, without the prefix that compiling a module adds.

    Raises:
        ValueError: a pickle that needs code, a damaged file, or anything other than named tensors.
    """
    again = "get it again, or have its `state_dict()` saved as safetensors"
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidValueError(
            f"{path} is damaged, or a pickle that runs code when it is read, which is refused "
            f"({str(error).splitlines()[0]}); {again}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise InvalidValueError(
            f"{path} is damaged ({str(error).splitlines()[:1]}); {again}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("sae"), dict):
        found = found["sae"]  # Llamascopium stores its version beside it
    named = isinstance(found, dict) and bool(found)
    if not named or not all(isinstance(found[name], Tensor) for name in found):
        raise InvalidValueError(f"{path} must hold tensors by name, got other things; {again}")
    return {str(name).split("_orig_mod.")[-1]: tensor.detach() for name, tensor in found.items()}


def _choose(names: Iterable[str], where: str) -> str:
    """The one weights file among `names`."""
    names = sorted(names)
    found = [name for name in _KNOWN if name in names] or [
        name for name in names if name.endswith(_ENDINGS)
    ]
    if not found:
        raise MissingFileError(
            f"{where} holds no weights (.safetensors or .pt), there is {names}; name the folder or the "
            f"file within it by `sae_id` (of a repository only {list(_KNOWN)} are looked for)"
        )
    if len(found) > 1:
        raise InvalidValueError(
            f"{where} must hold one file of weights, got {found}; give the path of the one you want"
        )
    return found[0]


def _settings(names: Collection[str], weights: str) -> str | None:
    """The settings file that belongs to a weights file."""
    stem = weights.rpartition(".")[0]
    known = (f"{stem}_cfg.json", "cfg.json", "model_cfg.yaml", "config.json")
    return next((name for name in known if name in names), None)


def _read_settings(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        found = read_json(path)
    else:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidValueError(f"{path} is not plain YAML ({error}); get it again") from error
    if not isinstance(found, dict):
        raise InvalidValueError(f"{path} must hold settings by name, got {found!r}; get it again")
    return found


def _from_hub(repo_id: str, within: str) -> Path:
    """Download a repository's settings and weights (the known names, or the one file named)."""
    folder, _, name = within.rpartition("/") if within.endswith(_ENDINGS) else (within, "", "")
    folder = folder.strip("./")
    wanted = [name] if name else [*_KNOWN]
    patterns = [f"{folder}/{w}".lstrip("/") for w in (*wanted, "*.json", "*.yaml")]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise MissingFileError(
            f"{repo_id!r} is not a file or folder here, and as a repository of the Hugging Face hub "
            f"it is not to be had: {error}"
        ) from error
