"""The images of one frame on their way out: all together, or the image ahead of what is known of it later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ismrmrd
    import torch

    from gadget.images.emit import Emitter
    from gadget.kspace.prepare import PreparedFrame
    from pogmdm_core import ReconResult


class FrameSender:
    """Sends the images of one frame, each series once.

    Parameters
    ----------
    emitter
        Makes them.
    prepared
        The frame.
    send
        Takes one image.
    """

    def __init__(self, emitter: Emitter, prepared: PreparedFrame, send: Callable[[ismrmrd.Image], object]) -> None:
        self._emitter, self._prepared, self._send = emitter, prepared, send
        self._is_ahead = False

    @property
    def early(self) -> Callable[[ReconResult], None] | None:
        """What takes the image as soon as it is final; None where it waits for the rest."""
        output = self._emitter.output
        is_first = output.order == "image_first" and output.estimate != "mean" and "image" in output.maps
        return self._ahead if is_first else None

    def _ahead(self, result: ReconResult) -> None:
        if self._is_ahead:
            return  # tried again with less memory: what was sent stays sent
        for image in self._emitter.images(result, self._prepared, ("image",)):
            self._send(image)
        self._is_ahead = True

    def rest(self, result: ReconResult) -> None:
        """Send what was not sent ahead."""
        names = [name for name in self._emitter.output.maps if not (self._is_ahead and name == "image")]
        for image in self._emitter.images(result, self._prepared, names):
            self._send(image)

    def fallback(self, image: torch.Tensor) -> None:
        """Send a zero-filled magnitude `(y, x)` instead, labelled FALLBACK."""
        for made in self._emitter.fallback(image, self._prepared):
            self._send(made)
