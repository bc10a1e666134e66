"""The exceptions of the stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class CriticalError(Exception):
    """Something that ends micromamba with status 1.

    Attributes:
        critical: The last line on standard error.
        error: What is said before that.
        say: What is said on standard output meanwhile.
        document: What `--json` prints.
    """

    critical: str
    error: str | None = None
    say: str | None = None
    document: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class CondaError(Exception):
    """Something that ends conda.

    Attributes:
        text: The last words on standard error.
        status: The exit status, which is not always 1.
    """

    text: str
    status: int = 1
