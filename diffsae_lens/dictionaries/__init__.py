"""Dictionaries: Diff-SAEs and crosscoders, each a SAELens training class with its inference form.

Importing this package registers them with SAELens, so that `SAE.load_from_disk` and the runners of
SAELens know them. `import diffsae_lens` does it where SAELens is imported already.
"""

import lazy_loader

from diffsae_lens.dictionaries import (  # noqa: F401  # each registers its classes
    _crosscoder,
    _crosscoder_training,
    _delta,
    _paper,
    _topk,
)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
