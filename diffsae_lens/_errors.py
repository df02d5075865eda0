"""The errors of the package: each is also a built-in error, so that either can be caught."""


class DiffSAELensError(Exception):
    """Base of every error that the package raises on purpose."""


class InvalidValueError(DiffSAELensError, ValueError):
    """An argument, a setting or a file with an invalid value."""


class InvalidTypeError(DiffSAELensError, TypeError):
    """An argument or a setting of the wrong type."""


class FailedRunError(DiffSAELensError, RuntimeError):
    """Something that was started and could not be completed."""


class MissingFileError(DiffSAELensError, FileNotFoundError):
    """A file or folder that does not exist."""


class OccupiedPathError(DiffSAELensError, FileExistsError):
    """A path that something else already occupies."""


for _error in (DiffSAELensError, *DiffSAELensError.__subclasses__()):
    _error.__module__ = "diffsae_lens"  # the name shown in tracebacks
