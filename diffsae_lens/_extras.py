"""Optional packages, by the extra that installs them."""

from importlib.util import find_spec

EXTRAS = {
    "bandit": "organisms",
    "dask_jobqueue": "cluster",
    "distributed": "cluster",
    "gguf": "organisms",
    "jinja2": "plots",
    "matplotlib": "plots",
    "neuronpedia": "neuronpedia",
}


def require(package: str, purpose: str) -> None:
    """Raise if an optional package is not installed, before the work that needs it.

    Raises:
        ModuleNotFoundError: names the package, what needs it and the command that installs it.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(missing(package, purpose), name=package)


def missing(package: str, purpose: str = "") -> str:
    """Return a message that a package is missing and what installs it.

    Examples:
        >>> missing("bandit", "judging code")
        "the module bandit is missing (judging code needs it); pip install 'diffsae-lens[organisms]'"
    """
    extra = EXTRAS.get(package)
    install = f"diffsae-lens[{extra}]" if extra else "diffsae-lens"
    reason = f" ({purpose} needs it)" if purpose else ""
    return f"the module {package} is missing{reason}; pip install '{install}'"
