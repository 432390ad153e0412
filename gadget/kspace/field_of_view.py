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
    from gadget.kspace.prepare import PreparedFrame
    from gadget.scan.frames import AcquiredFrame
    from gadget.scan.geometry import Space
    from gadget.settings.schema import GadgetSettings
    from pogmdm_core import ReconResult

    Prepare = Callable[[AcquiredFrame, GadgetSettings], PreparedFrame]
    Compute = Callable[[PreparedFrame, GadgetSettings], ReconResult]

LARGER = 1.5
# A model that is wrong for other reasons gains next to nothing: 1 % on a heart in motion, against 25 % on a spiral scan
# of an object that sticks out.
_EXPLAINS = 0.9


class FieldOfView:
    """Settles ``trajectory.fov_factor=auto`` with the first frame of each slice of an encoding.

    Parameters
    ----------
    settings
        Of the scan.
    prepare
        Makes the frame to be reconstructed with given settings.
    compute
        Reconstructs it; the joint start's result tells a residual, and whether the model fits (MODEL_ERROR).
    """

    def __init__(self, settings: GadgetSettings, prepare: Prepare, compute: Compute) -> None:
        self._prepare, self._compute = prepare, compute
        self._wanted = (
            settings.trajectory.fov_factor == "auto"
            and settings.coils.init == "nlinv"
            and settings.limits.recon_deadline_s is None
        )
        trajectory = settings.trajectory.model_copy(update={"fov_factor": LARGER})
        self._larger = settings.model_copy(update={"trajectory": trajectory})
        self._start_only = settings.joint_start_only()
        self._sticks_out: dict[tuple[int, Space, Space], bool] = {}

    def fitted(self, acquired: AcquiredFrame, prepared: PreparedFrame) -> PreparedFrame:
        """Give a frame as large a field of view as its data need; LARGER_FOV in its warnings tells so.

        With ``limits.recon_deadline_s`` there is no time to try: `auto` is 1 then.
        """
        if acquired.on_grid or not self._wanted:
            return prepared
        where = (acquired.key.slice, acquired.encoding.encoded, acquired.encoding.recon)
        if where in self._sticks_out:
            return self._enlarged(acquired) if self._sticks_out[where] else prepared
        begun = self._compute(prepared, self._start_only)
        tried = replace(prepared, start=begun.start)
        self._sticks_out[where] = False
        if "MODEL_ERROR" in begun.warnings:
            larger = self._enlarged(acquired)
            wider = self._compute(larger, self._start_only)
            if wider.data_residual < _EXPLAINS * begun.data_residual:
                tried = replace(larger, start=wider.start)
                self._sticks_out[where] = True
            logs.get().info(
                "%s: residual %.2f, with a field of view %g times as large %.2f: %s",
                acquired.key,
                begun.data_residual,
                LARGER,
                wider.data_residual,
                "the object is larger than the field of view" if self._sticks_out[where] else "field of view kept",
            )
        return tried

    def _enlarged(self, acquired: AcquiredFrame) -> PreparedFrame:
        prepared = self._prepare(acquired, self._larger)
        return replace(prepared, warnings=(*prepared.warnings, "LARGER_FOV"))
