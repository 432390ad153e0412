"""Joint image and coil reconstruction by posterior sampling with a learned prior (pure torch).

What is exported is imported on first use: torch takes seconds, and settings and errors do without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pogmdm_core._version import __version__

if TYPE_CHECKING:
    from pogmdm_core.errors import ComputeError, ConfigError, DataError, HeaderError, OutputError, PogmdmError
    from pogmdm_core.frame import KSpaceFrame
    from pogmdm_core.prior.base import Prior
    from pogmdm_core.prior.weights import load_prior
    from pogmdm_core.reconstruction import reconstruct, zero_filled
    from pogmdm_core.result import ReconResult
    from pogmdm_core.run import Progress, SamplerStatus
    from pogmdm_core.settings import Settings

__all__ = [
    "ComputeError",
    "ConfigError",
    "DataError",
    "HeaderError",
    "KSpaceFrame",
    "OutputError",
    "PogmdmError",
    "Prior",
    "Progress",
    "ReconResult",
    "SamplerStatus",
    "Settings",
    "__version__",
    "load_prior",
    "reconstruct",
    "zero_filled",
]

_MODULES = {
    "errors": ("ComputeError", "ConfigError", "DataError", "HeaderError", "OutputError", "PogmdmError"),
    "frame": ("KSpaceFrame",),
    "prior.base": ("Prior",),
    "prior.weights": ("load_prior",),
    "reconstruction": ("reconstruct", "zero_filled"),
    "result": ("ReconResult",),
    "run": ("Progress", "SamplerStatus"),
    "settings": ("Settings",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what a public name stands for, once (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'pogmdm_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pogmdm_core.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
