"""Model folders and hub ids: what they contain, what is missing, and how transformers loads them."""

import logging
import pickle
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens.pair._embedded import EMBEDDED_MODEL, ModelUnavailableError, embedded_model_path
from diffsae_lens.pair._options import Placement, is_quantised

logger = logging.getLogger(__name__)

SHIPPED_ORGANISMS_DIR = Path(__file__).parents[1] / "organisms" / "adapters"
ATTENTION = "eager"  # what TransformerBridge itself requests, so that patterns can be hooked
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def shipped_organisms() -> tuple[str, ...]:
    """Return the names of the adapters that come with the package."""
    return tuple(sorted(p.parent.name for p in SHIPPED_ORGANISMS_DIR.glob("*/adapter_config.json")))


def resolve_model(model: str | Path, *, tokenizer: bool = False) -> str:
    """Resolve a name to what transformers can load: a folder for what we ship, otherwise unchanged.

    Raises:
        TypeError: not a name.
        ValueError: a path that does not exist, or a folder without a model.
    """
    if not isinstance(model, str | Path):
        raise InvalidTypeError(
            f"a model must be named by a folder or a hub id, got a {type(model).__name__}"
        )
    if str(model) == EMBEDDED_MODEL:
        return str(embedded_model_path())
    if str(model) in shipped_organisms():
        return str(SHIPPED_ORGANISMS_DIR / str(model))
    looks_local = isinstance(model, Path) or str(model).startswith((".", "/", "~"))
    path = Path(model).expanduser()
    if path.exists():
        if not tokenizer:  # for a tokenizer, the caller says what is missing
            _check_holds_model(path)
        return str(path)
    if looks_local or str(model).count("/") > 1:
        raise InvalidValueError(f"there is no model folder {model}")
    if "/" not in str(model):
        known = ", ".join([EMBEDDED_MODEL, *shipped_organisms()])
        raise InvalidValueError(
            f"unknown model {str(model)!r}: give one of {known}, a folder, or a hub id 'owner/name'"
        )
    return str(model)


def _check_holds_model(path: Path) -> None:
    """Refuse a folder without a model or an adapter, and suggest a subfolder that has one."""
    if not path.is_dir():
        raise InvalidValueError(f"{path} is a file; give the folder that holds the model")
    if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        return
    found = sorted(
        {
            inner.parent
            for name in ("config.json", "adapter_config.json")
            for inner in path.glob(f"*/{name}")
        },
        key=lambda p: (len(p.name), p.name),
    )
    hint = ""
    if found:
        others = f" (there are {', '.join(p.name for p in found)})" if len(found) > 1 else ""
        hint = f"; did you mean {found[-1]}?{others}"
    raise InvalidValueError(
        f"{path} holds neither a model (config.json) nor an adapter (adapter_config.json){hint}"
    )


def fetch(loader: Any, path: str, revision: str | None, **kwargs: Any) -> Any:
    """Call `from_pretrained`, with errors that say what to do.

    Python code that comes with a model is never run (`trust_remote_code=False`).

    Raises:
        ModelUnavailableError: the model is neither a folder nor cached, and cannot be fetched.
        ValueError: the model brings its own Python code, needs a package that is not installed (such as
            bitsandbytes), or has unreadable files.
    """
    try:
        return loader.from_pretrained(path, revision=revision, trust_remote_code=False, **kwargs)
    except SafetensorError as error:
        raise InvalidValueError(
            f"a weight file of {path!r} is damaged or cut short ({error}); copy or fetch the model again"
        ) from error
    except pickle.UnpicklingError as error:
        raise InvalidValueError(
            f"the weights of {path!r} are pickled and hold more than tensors, so they are not read (a "
            "pickle can run code); have the model saved again as safetensors. The loader said: "
            f"{error}"
        ) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise InvalidValueError(f"{path!r} cannot be loaded: {error}") from error
        raise InvalidValueError(
            f"{path!r} brings Python of its own (an `auto_map` in its configuration), which this package "
            "never runs; use a model of an architecture that transformers knows"
        ) from error
    except ImportError as error:
        raise InvalidValueError(
            f"{path!r} needs a package that is not here: {' '.join(str(error).split())}"
        ) from error
    except OSError as error:
        if Path(path).is_dir():
            raise InvalidValueError(f"the model folder {path} cannot be read: {error}") from error
        raise ModelUnavailableError(
            f"{path!r} is neither a model folder here nor in the hub's cache, and cannot be fetched. "
            "Check the name and the connection; without a hub use the embedded model "
            f"{EMBEDDED_MODEL!r} or a local folder. The loader said: {error}"
        ) from error


def load_weights(path: str, revision: str | None, placement: Placement) -> PreTrainedModel:
    """Load a model in evaluation mode, with parameters that require no gradients."""
    how: dict[str, Any] = {}
    if placement.quantization_config is not None:  # quantised on its device while it is read
        how["quantization_config"] = placement.quantization_config
        how["device_map"] = {"": placement.device}
    model = fetch(
        AutoModelForCausalLM, path, revision, dtype=placement.dtype, attn_implementation=ATTENTION,
        **how,
    )  # fmt: skip
    model.eval().requires_grad_(False)
    return model if is_quantised(model.config) else model.to(placement.device)


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether a folder holds a tokenizer."""
    return any((Path(folder) / name).exists() for name in _TOKENIZER_FILES)


def load_tokenizer(path: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """Load a tokenizer, or return None for a folder without one."""
    if Path(path).is_dir() and not has_tokenizer(path):
        logger.info("%s holds no tokenizer", path)
        return None
    return fetch(AutoTokenizer, path, revision)


def find_adapter(path: str, revision: str | None) -> Path | None:
    """Return the local folder of an adapter; None for a whole model."""
    try:
        found = find_adapter_config_file(path, revision=revision)
    except OSError:  # no network, and not a cached adapter either
        found = None
    return None if found is None else Path(found).parent


def check_adapter(folder: Path, config: PeftConfig, base: PretrainedConfig) -> None:
    """Compare an adapter with the base before any weight is loaded.

    Raises:
        ValueError: not a LoRA adapter, pickled or missing weights, or made for another model size.
    """
    if str(config.peft_type) not in ("LORA", "PeftType.LORA"):
        raise InvalidValueError(
            f"`finetuned` {folder} is a {config.peft_type} adapter; only LORA is supported"
        )
    if not (folder / ADAPTER_WEIGHTS).exists():
        pickled = (folder / "adapter_model.bin").exists()
        raise InvalidValueError(
            f"the adapter {folder} has no {ADAPTER_WEIGHTS}"
            + (
                ", only adapter_model.bin, a pickle, which is not read (it can run code); have it saved "
                "again with `safe_serialization=True`"
                if pickled
                else ""
            )
        )
    shapes = adapter_shapes(folder)
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in shapes if ".layers." in name}
    if layers and max(layers) >= base.num_hidden_layers:
        raise InvalidValueError(
            f"the adapter {folder} reaches layer {max(layers)}, but `base` has "
            f"{base.num_hidden_layers} layers: it was made for another model"
        )
    for name, shape in shapes.items():
        if name.endswith("q_proj.lora_A.weight") and shape[1] != base.hidden_size:
            raise InvalidValueError(
                f"the adapter {folder} is for a model {shape[1]} wide, but `base` is "
                f"{base.hidden_size} wide"
            )


def adapter_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in an adapter's file, by name.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / ADAPTER_WEIGHTS
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidValueError(f"the adapter's file {file} is damaged: {error}") from error
