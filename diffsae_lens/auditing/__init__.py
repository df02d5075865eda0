"""Whether a fine-tune hides something: imitators, residuals, experiments, and clean models beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
