"""What a DICOM file holds that Gadgetron's DicomFinishGadget writes from our images: pixels and window, no slope."""

import re

import numpy as np
import pydicom
import pytest
import torch
from helpers.frames import emitted
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from gadget.images.integer_pixels import LARGEST, PixelScale

pytestmark = pytest.mark.fault("F60")


def written(image, path):
    """Write an image as that gadget does: it reads its keys, without asking, as text, whole numbers by atol."""
    meta = image.meta
    pixels = image.data[0, 0]
    assert pixels.dtype == np.uint16
    file = pydicom.Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.PixelData = pixels.tobytes()
    file.InstanceNumber = int(meta["GADGETRON_ImageNumber"])
    file.ImageComments = "_".join(meta["GADGETRON_ImageComment"])
    file.SeriesDescription = meta["GADGETRON_SeqDescription"]
    file.WindowCenter, file.WindowWidth = int(meta["GADGETRON_WindowCenter"]), int(meta["GADGETRON_WindowWidth"])
    file.save_as(path, enforce_file_format=True)
    return pydicom.dcmread(path)


def power_of(file):
    """The power of two that a reader finds in words."""
    found = re.search(r"_x(\d+)$", file.SeriesDescription)
    power = int(found[1]) if found else 1
    assert f"_x{power}_" in f"{file.ImageComments}_" or power == 1
    return power


@pytest.mark.parametrize("share", [0.3, 0.02, 0.0001])
def test_image_and_std_keep_their_ratio_without_a_slope(share, tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(40, 48, generator=generator) + 0.5
    std = share * (torch.rand(40, 48, generator=generator) + 0.5)
    _, _, _, images = emitted(
        result_changes={"map": image, "image": image, "std": std, "phase": torch.zeros(40, 48)},
        **{"output.dtype": "uint16"},
    )
    first, second = (written(one, tmp_path / f"{number}.dcm") for number, one in enumerate(images))
    assert power_of(first) == 1
    power = power_of(second)
    assert power & (power - 1) == 0
    ratio = second.pixel_array / power / first.pixel_array.astype(np.float64)
    expected = std.numpy() / image.numpy()
    # half a step of either
    tolerance = (0.5 / power + 0.51 * expected) / first.pixel_array
    assert (np.abs(ratio - expected) <= tolerance + 1e-9).all()
    # digits of the standard deviation are used, unless even the largest power leaves none
    assert second.pixel_array.max() > LARGEST / 4 or power == LARGEST + 1


def test_windows_are_those_of_the_pixels(tmp_path):
    _, _, _, images = emitted(**{"output.dtype": "uint16"})
    for number, image in enumerate(images):
        file = written(image, tmp_path / f"{number}.dcm")
        low, high = file.WindowCenter - file.WindowWidth / 2, file.WindowCenter + file.WindowWidth / 2
        pixels = file.pixel_array
        assert ((pixels >= low - 1) & (pixels <= high + 1)).mean() > 0.95
        assert high > 0.5 * pixels.max()
        # both vocabularies
        assert image.meta["WindowCenter"] == image.meta["GADGETRON_WindowCenter"]


def test_floats_keep_the_window_of_their_values():
    image = 1000 * torch.rand(40, 48, generator=torch.Generator().manual_seed(0))
    _, _, _, images = emitted(result_changes={"map": image, "image": image, "phase": torch.zeros(40, 48)})
    assert 950 < float(images[0].meta["WindowCenter"]) + float(images[0].meta["WindowWidth"]) / 2 <= 1010
    assert "_x" not in images[1].meta["GADGETRON_SeqDescription"]


def test_the_power_leaves_headroom():
    scale = PixelScale(0.001)
    for peak in (4.0, 1.0, 0.1, 0.0013, 1e-9):
        finer, power = scale.finer(np.array([peak / 2, peak]))
        assert finer.slope * power == pytest.approx(scale.slope)
        pixels, clipped = finer.pixels(np.array([1.2 * peak]))
        assert clipped == 0 or power == 1
    assert scale.finer(np.zeros(4)) == (scale, 1)
