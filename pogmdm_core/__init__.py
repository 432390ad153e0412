"""Joint image and coil reconstruction by posterior sampling with a learned prior (pure torch)."""

from pogmdm_core._version import __version__
from pogmdm_core.errors import ComputeError, ConfigError, DataError, HeaderError, OutputError, PogmdmError
from pogmdm_core.frame import KSpaceFrame, Progress, ReconResult, SamplerStatus
from pogmdm_core.prior.model import Prior
from pogmdm_core.prior.weights import load_prior
from pogmdm_core.reconstruct import reconstruct, zero_filled
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
