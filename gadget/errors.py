"""The coded errors of `pogmdm_core.errors`, and the one line that is shown of any error.

The classes are looked up on first use, so that this module (and with it the transport) can be
imported, and an error reported, even where importing `pogmdm_core` fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pogmdm_core.errors import (
        ComputeError,
        ConfigError,
        DataError,
        HeaderError,
        OutputError,
        PogmdmError,
        TransportError,
    )

__all__ = [
    "ComputeError",
    "ConfigError",
    "DataError",
    "HeaderError",
    "OutputError",
    "PogmdmError",
    "TransportError",
    "coded",
]


def __getattr__(name: str) -> Any:
    """Re-export the classes of `pogmdm_core.errors` lazily (PEP 562)."""
    if name in __all__:
        from pogmdm_core import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'gadget.errors' has no attribute {name!r}")


def coded(error: Exception) -> Exception:
    """Return an error whose text may be shown: coded errors as they are, anything else as E599.

    The text of an unexpected error may quote what it choked on, patient data included, so only
    the name of its type is kept.
    """
    try:
        from pogmdm_core.errors import ComputeError, PogmdmError
    except ImportError as missing:
        # an incomplete installation; only the module's name is told
        return RuntimeError(f"E598 the module {missing.name} cannot be imported. Run: pogmdm doctor")
    if isinstance(error, PogmdmError):
        return error
    if isinstance(error, ImportError):
        return ComputeError(598, f"the module {error.name} cannot be imported.", "Run: pogmdm doctor")
    return ComputeError(
        599,
        f"unexpected {type(error).__name__} in the reconstruction.",
        "Set log=debug to see where, and report it.",
    )
