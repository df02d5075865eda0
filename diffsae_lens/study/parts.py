"""The demo's results one by one: each a JSON artifact that knows what it was made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_WEIGHTS_FILENAME

from diffsae_lens._artifact import build_json, digest, open_artifact


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Results that were made from the same models, dictionaries and settings, in one folder."""

    folder: Path
    made_from: Mapping[str, Any]
    """Everything that they depend on, as JSON; see `build_json`."""

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Read a result, computing and storing it the first time.

        Raises:
            ValueError: the folder holds that of other models, dictionaries or settings.
        """
        return build_json(self.folder / f"{name}.json", {"part": name, **self.made_from}, compute)


def dictionary_identity(folder: Path) -> dict[str, str]:
    """What a dictionary was made from, and what came out."""
    manifest = open_artifact(folder, check=False)  # it was checked when it was opened
    return {"recipe": digest(manifest.recipe), "weights": manifest.files[SAE_WEIGHTS_FILENAME]}
