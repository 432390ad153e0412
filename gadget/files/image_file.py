"""Images of a replay as an ISMRMRD file, grouped by series as Gadgetron's client does."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from gadget.files.hdf5_storage import Hdf5Storage
from pogmdm_core.errors import OutputError

if TYPE_CHECKING:
    import ismrmrd


class ImageFile:
    """Collects images; each series becomes the group ``image_<series>`` of one group of the file.

    Parameters
    ----------
    storage
        Of the file.
    group
        Group that holds the series.
    """

    def __init__(self, storage: Hdf5Storage, group: str) -> None:
        import ismrmrd

        self.series: dict[int, int] = {}
        self._kinds: dict[int, tuple[object, ...]] = {}
        self._storage = storage
        self._dataset = ismrmrd.Dataset(storage, group)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dataset.close()

    def append(self, image: ismrmrd.Image) -> None:
        """Add one image.

        Raises
        ------
        OutputError
            E604 its shape, pixel type or image type differs from its series: writing it would leave the series
            unreadable.
        OSError
            The file cannot be written.
        """
        number = int(image.image_series_index)
        kind = (image.data.shape, image.data.dtype, image.image_type)
        if self._kinds.setdefault(number, kind) != kind:
            raise OutputError(
                604, f"series {number} mixes images {self._kinds[number][:2]} and {kind[:2]}.", "Report this."
            )
        self._dataset.append_image(f"image_{number}", image)
        self._storage.check()
        self.series[number] = self.series.get(number, 0) + 1
