"""Model diffing with sparse dictionaries, for SAELens and TransformerLens.

The public names are listed in `__init__.pyi` and imported when they are first used, so that the command
line answers without waiting for torch. Our dictionary classes are registered with SAELens as soon as
both packages are imported, in either order.
"""

from importlib import import_module
from importlib.metadata import version

import lazy_loader
import wrapt

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("diffsae-lens")


@wrapt.when_imported("sae_lens")
def _register(_: object) -> None:
    import_module("diffsae_lens.dictionaries")
