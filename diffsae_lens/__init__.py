"""Model diffing with sparse dictionaries, for SAELens and TransformerLens.

The public names are listed in `__init__.pyi` and imported when they are first used, so that the command
line answers without waiting for torch. SAELens's own loaders know our dictionaries once
`diffsae_lens.dictionaries` is imported: by itself where SAELens is imported already, else with the first
public name that needs it. `import diffsae_lens.dictionaries` makes sure.
"""

import sys
from importlib import import_module
from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("diffsae-lens")

if "sae_lens" in sys.modules:
    import_module("diffsae_lens.dictionaries")
