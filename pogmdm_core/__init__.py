"""Joint image and coil reconstruction by posterior sampling with a learned prior (pure torch)."""

from pogmdm_core._version import __version__
from pogmdm_core.errors import ComputeError, ConfigError, DataError, HeaderError, OutputError, PogmdmError
from pogmdm_core.frame import KSpaceFrame, Progress, ReconResult, SamplerStatus
from pogmdm_core.settings import Settings

__all__ = [
    "ComputeError",
    "ConfigError",
    "DataError",
    "HeaderError",
    "KSpaceFrame",
    "OutputError",
    "PogmdmError",
    "Progress",
    "ReconResult",
    "SamplerStatus",
    "Settings",
    "__version__",
]
