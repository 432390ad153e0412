import ismrmrd
import numpy as np
import pytest
import torch
from helpers.frames import emitted, prepared_of
from helpers.mrd_factory import Scan

from gadget.errors import OutputError
from gadget.images.emit import Emitter
from gadget.images.integer_pixels import LARGEST, PixelScale
from gadget.scan.header import read_geometry
from gadget.settings.load import load


def float_to_ushort(pixels, low=0, high=4095):
    """What Gadgetron's FloatToUShortGadget does by default: round half up, clamp."""
    return np.clip(np.floor(pixels.astype(np.float64) + 0.5), low, high).astype(np.uint16)


def values_of(image, pixels=None):
    meta = image.meta
    pixels = image.data if pixels is None else pixels
    return pixels.astype(np.float64) * float(meta["RescaleSlope"]) + float(meta["RescaleIntercept"])


@pytest.mark.fault("F60")
def test_values_come_back_within_half_a_step_behind_an_integer_chain():
    maps = {"output.maps": "image,std,phase,mean"}
    _, _, _, floats = emitted(**maps)
    _, _, _, integers = emitted(**maps, **{"output.dtype": "uint16"})
    for exact, image in zip(floats, integers, strict=True):
        image = ismrmrd.Image.from_bytes(image.to_bytes())
        assert image.data.dtype == np.uint16
        np.testing.assert_array_equal(float_to_ushort(image.data), image.data)
        slope = float(image.meta["RescaleSlope"])
        assert np.abs(values_of(image) - exact.data).max() <= 0.5 * slope * (1 + 1e-5)
        assert image.data.max() > LARGEST / 2  # the range is used, the standard deviation's too
        # the other dialect says the inverse
        ratio, offset = (float(image.meta[f"GADGETRON_Scale{name}"]) for name in ("Ratio", "Offset"))
        np.testing.assert_allclose((image.data - offset) / ratio, values_of(image), atol=1e-9 * max(1, 1 / ratio))
        assert image.meta["POGMDM_Clipped"] == "0"


@pytest.mark.fault("F60")
def test_all_images_of_a_series_have_one_slope_and_brighter_ones_are_clipped_and_counted(caplog):
    prepared, result, emitter, first = emitted(**{"output.dtype": "uint16"})
    brighter = result.image.clone()
    brighter[3:5, 7] = 10 * result.image.max()
    object.__setattr__(result, "map", brighter)
    object.__setattr__(result, "image", brighter)
    second = emitter.images(result, prepared)
    assert second[0].meta["RescaleSlope"] == first[0].meta["RescaleSlope"]
    assert int(second[0].meta["POGMDM_Clipped"]) >= 2
    assert "CLIPPED" in second[0].meta["POGMDM_Warnings"]
    assert second[0].data.max() == LARGEST
    assert "pixels of the image are beyond the largest" in caplog.text


@pytest.mark.fault("F61")
def test_overflow_is_clipped_with_a_count_and_nan_is_refused():
    _, result, _, images = emitted(**{"output.dtype": "uint16", "output.window": "0.5"})
    (image, std) = images
    expected = int((emitted()[3][0].data > 0.5 * (1 + 0.5 / LARGEST)).sum())
    assert expected > 0
    assert int(image.meta["POGMDM_Clipped"]) == expected
    assert (image.data[image.data > 0].size, image.data.max()) == (image.data[image.data > 0].size, LARGEST)
    assert float(image.meta["RescaleSlope"]) == pytest.approx(0.5 / LARGEST)
    assert std.meta["POGMDM_Clipped"] == "0"  # the window is the image's
    broken = torch.full((40, 48), float("nan"))
    with pytest.raises(OutputError, match="E602"):
        emitted(result_changes={"map": broken, "image": broken}, **{"output.dtype": "uint16"})


@pytest.mark.fault("F43")
def test_an_image_of_zeros_has_a_slope():
    zero = torch.zeros(40, 48)
    _, _, _, (image, std) = emitted(
        result_changes={"map": zero, "image": zero, "std": zero}, **{"output.dtype": "uint16"}
    )
    assert (image.data.max(), std.data.max()) == (0, 0)
    assert float(image.meta["RescaleSlope"]) > 0


@pytest.mark.fault("F62")
def test_coil_maps_stay_complex_in_a_series_of_their_own():
    _, _, _, images = emitted(**{"output.dtype": "uint16", "output.maps": "image,csm"})
    assert [i.data.dtype for i in images] == [np.uint16, np.complex64]
    assert images[1].meta["RescaleSlope"] == "1.0"


def test_the_fallback_is_whole_numbers_too():
    prepared = prepared_of(Scan())
    prior = type("Prior", (), {"sha256": "0"})
    emitter = Emitter(load(properties={"output.dtype": "uint16"}), prior, read_geometry(Scan().header()))
    (image,) = emitter.fallback(torch.ones(40, 48), prepared)
    np.testing.assert_allclose(values_of(image), 1, atol=1e-3)


def test_phase_covers_the_circle():
    scale = PixelScale.of_phase()
    pixels, clipped = scale.pixels(np.array([-np.pi, 0, np.pi]))
    assert (list(pixels[[0, 2]]), clipped) == ([0, LARGEST], 0)
