"""Whether an object is larger than the field of view of a scan off the grid.

Where samples lie on the grid, what is outside the field of view folds back and nothing can be done. Off the grid, where
readouts are oversampled, it does not fold: a model that ends at the edge cannot explain it, and the reconstruction is
full of lines. A larger field of view explains it, at the cost of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from gadget import logs

if TYPE_CHECKING:
    from gadget.frames import AcquiredFrame
    from gadget.header import Space
    from gadget.prepare import PreparedFrame
    from gadget.settings import GadgetSettings
    from pogmdm_core import ReconResult

    Prepare = Callable[[AcquiredFrame, GadgetSettings], PreparedFrame]
    WarmStart = Callable[[PreparedFrame, GadgetSettings], ReconResult]

LARGER = 1.5
# A model that is wrong for other reasons gains next to nothing: 1 % on a heart in motion, against 25 % on a spiral scan
# of an object that sticks out.
_EXPLAINS = 0.9


class FieldOfView:
    """Settles ``trajectory.fov_factor=auto`` with the first frame of each encoding.

    Parameters
    ----------
    settings
        Of the scan.
    prepare
        Makes the frame to be reconstructed with given settings.
    warm_start
        Image and coils from the data alone: the result tells a residual, and whether the model fits (MODEL_ERROR).
    """

    def __init__(self, settings: GadgetSettings, prepare: Prepare, warm_start: WarmStart) -> None:
        self._settings, self._prepare, self._warm_start = settings, prepare, warm_start
        self._settled: dict[tuple[Space, Space], float] = {}

    def prepare(self, acquired: AcquiredFrame) -> PreparedFrame:
        """Prepare a frame with as large a field of view as its data need; LARGER_FOV in its warnings tells so.

        With ``limits.recon_deadline_s`` there is no time to try: `auto` is 1 then.
        """
        settings, spaces = self._settings, (acquired.encoding.encoded, acquired.encoding.recon)
        wanted = settings.trajectory.fov_factor == "auto" and settings.coils.init == "nlinv"
        if acquired.on_grid or not wanted or settings.limits.recon_deadline_s is not None:
            return self._prepare(acquired, settings)
        if spaces in self._settled:
            return self._enlarged(acquired) if self._settled[spaces] > 1 else self._prepare(acquired, settings)
        prepared = self._prepare(acquired, settings)
        found = self._try(prepared, 1.0)
        factor = 1.0
        if "MODEL_ERROR" in found.warnings:
            larger = self._enlarged(acquired)
            residual = self._try(larger, LARGER).data_residual
            if residual < _EXPLAINS * found.data_residual:
                prepared, factor = larger, LARGER
            logs.get().info(
                "%s: residual %.2f, with a field of view %g times as large %.2f: %s",
                acquired.key,
                found.data_residual,
                LARGER,
                residual,
                "the object is larger than the field of view" if factor > 1 else "field of view kept",
            )
        self._settled[spaces] = factor
        return prepared

    def _enlarged(self, acquired: AcquiredFrame) -> PreparedFrame:
        prepared = self._prepare(acquired, self._with(LARGER))
        return replace(prepared, warnings=(*prepared.warnings, "LARGER_FOV"))

    def _with(self, factor: float) -> GadgetSettings:
        trajectory = self._settings.trajectory.model_copy(update={"fov_factor": factor})
        return self._settings.model_copy(update={"trajectory": trajectory})

    def _try(self, prepared: PreparedFrame, factor: float) -> ReconResult:
        settings = self._with(factor)
        sampler = settings.sampler.model_copy(update={"n_samples": 0, "map_steps": 0})
        uncertainty = settings.uncertainty.model_copy(update={"method": "off"})
        return self._warm_start(prepared, settings.model_copy(update={"sampler": sampler, "uncertainty": uncertainty}))
