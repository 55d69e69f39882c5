"""One command a file: the docstring is its help, `configure` declares the options, `run` does the work."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def config_of(kind: type[Config], options: Any) -> Config:
    """The dataclass whose fields were declared among the options with ``parser.add_class_arguments(kind)``."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})  # type: ignore[arg-type]
