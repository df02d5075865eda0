"""The errors of the package: each is one of Python's own as well, so that either can be caught."""


class DiffSAELensError(Exception):
    """Base of every error that the package raises on purpose."""


class InvalidValueError(DiffSAELensError, ValueError):
    """An argument, a setting or a file with a value that cannot be."""


class InvalidTypeError(DiffSAELensError, TypeError):
    """An argument or a setting of a type that cannot be."""


class FailedRunError(DiffSAELensError, RuntimeError):
    """Something that was started and could not be done."""


class MissingFileError(DiffSAELensError, FileNotFoundError):
    """A file or folder that is not there."""


class OccupiedPathError(DiffSAELensError, FileExistsError):
    """A place that something else has taken."""


for _error in (DiffSAELensError, *DiffSAELensError.__subclasses__()):
    _error.__module__ = "diffsae_lens"  # as tracebacks name it
