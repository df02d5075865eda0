"""Model diffing with sparse dictionaries, for SAELens and TransformerLens.

The public names are listed in `__init__.pyi` and imported when they are first used, so that the command
line answers without waiting for torch.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("diffsae-lens")
