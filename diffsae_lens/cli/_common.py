"""What the commands have in common."""

import shlex
from dataclasses import fields
from typing import Any

from diffsae_lens._extras import require


def with_given(config: type, options: dict[str, Any]) -> Any:
    """Return the config with the options the user gave; the rest keep their defaults."""
    names = {field.name for field in fields(config)}
    chosen = {
        k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None
    }
    return config(**{k: v for k, v in chosen.items() if k in names})


def require_report() -> None:
    """Say what a report needs before there has been any work."""
    for package in ("matplotlib", "jinja2"):
        require(package, "the report")


def command_line(name: str, *words: str, **options: Any) -> str:
    """Return the command line with its words and the options that were given.

    Examples:
        >>> command_line("demo", out="a b", layers=[14, 18], seed=None)
        "diffsae-lens demo --out 'a b' --layers 14 18"
    """
    line = ["diffsae-lens", name, *words]
    for option, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            line += [f"--{option.replace('_', '-')}", *map(str, values)]
    return shlex.join(line)
