"""The door between the two rooms: what the gadget asks of the reconstruction, `pogmdm_core`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from pogmdm_core.estimate.joint_start import JointStart
    from pogmdm_core.frame import KSpaceFrame
    from pogmdm_core.prior.base import Prior
    from pogmdm_core.result import ReconResult
    from pogmdm_core.run import Progress
    from pogmdm_core.settings import Settings


class Core(Protocol):
    """See `pogmdm_core`; tests put another in its place."""

    def load_prior(self, name_or_path: str, /) -> Prior:
        """Load a prior by shipped name or from a file."""

    def reconstruct(
        self,
        frame: KSpaceFrame,
        prior: Prior,
        settings: Settings,
        /,
        *,
        progress: Callable[[Progress], object] | None,
        should_stop: Callable[[], bool],
        start: JointStart | None,
        early: Callable[[ReconResult], object] | None,
    ) -> ReconResult:
        """Estimate image, uncertainty and coils."""

    def zero_filled(self, frame: KSpaceFrame, /) -> torch.Tensor:
        """Root sum of squares without any prior, `(y, x)`."""


def resolve_core() -> Core:
    """Import the reconstruction; torch comes with it, which takes seconds."""
    import pogmdm_core

    return pogmdm_core


_MOST_KEPT = 2
_kept: OrderedDict[tuple[object, str], Prior] = OrderedDict()


def resident_prior(core: Core, name_or_path: str) -> Prior:
    """Load a prior, or return the one an earlier scan of this process loaded, with the tables it has made since.

    The file is read and checked in any case; what counts is its content, not its name.
    """
    prior = core.load_prior(name_or_path)
    key = (core.load_prior, prior.sha256)
    prior = _kept.setdefault(key, prior)
    _kept.move_to_end(key)
    while len(_kept) > _MOST_KEPT:
        _kept.popitem(last=False)
    return prior
