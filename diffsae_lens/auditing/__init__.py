"""Audits for hidden behaviour in a fine-tune: imitators, residuals, experiments, and clean models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
