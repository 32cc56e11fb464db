"""What tamis raises: each class also is the builtin that people catch.

A message is one sentence: ``function: argument: got X, wanted Y; fix.``
"""

from __future__ import annotations

import re


class TamisError(RuntimeError):
    """Anything tamis raises on purpose; what it quotes is put on one line."""

    def __init__(self, message: object = "", *rest: object) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", str(message)), *rest)


class TamisValueError(TamisError, ValueError):
    """A shape, range or value that the caller can correct."""


class TamisTypeError(TamisError, TypeError):
    """A type, dtype or device that the caller can correct."""


class TamisUnsupported(TamisError, NotImplementedError):
    """The request is sound, but nothing here computes it; the message lists what exists."""


class TamisFileError(TamisError, OSError):
    """A file that is missing, unreadable, damaged or from another version."""
