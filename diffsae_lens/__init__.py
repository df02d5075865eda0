"""Model diffing with sparse dictionaries, for SAELens and TransformerLens.

The public names are listed in `__init__.pyi` and imported on first use, so that the command line answers
without waiting for torch. SAELens's loaders know our dictionaries once `diffsae_lens.dictionaries` is
imported. That happens automatically if SAELens is already imported, otherwise with the first public name
that needs it; to force it, `import diffsae_lens.dictionaries`.
"""

import sys
from importlib import import_module
from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("diffsae-lens")

if "sae_lens" in sys.modules:
    import_module("diffsae_lens.dictionaries")
