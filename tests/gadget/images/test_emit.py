from dataclasses import replace

import ismrmrd
import numpy as np
import pytest
import torch
from helpers.fake_core import reconstruct
from helpers.frames import emitted, prepared_of
from helpers.mrd_factory import Scan

from gadget.errors import OutputError
from gadget.images.emit import number_of_frame
from gadget.images.meta import SERIES
from gadget.images.recon_space import to_recon_complex, to_recon_linear
from gadget.scan.frames import FrameKey
from gadget.scan.geometry import Space
from gadget.settings.load import load

# What an image header has to hold, by field: a function of the reference readout's header.
RULES = {
    "measurement_uid": lambda ref: ref.measurement_uid,
    "acquisition_time_stamp": lambda ref: ref.acquisition_time_stamp,
    "position": lambda ref: list(ref.position),
    "read_dir": lambda ref: list(ref.read_dir),
    "phase_dir": lambda ref: list(ref.phase_dir),
    "slice_dir": lambda ref: list(ref.slice_dir),
    "slice": lambda ref: ref.idx.slice,
    "repetition": lambda ref: ref.idx.repetition,
    "image_type": lambda ref: ismrmrd.IMTYPE_MAGNITUDE,
    "image_index": lambda ref: 1,
    "channels": lambda ref: 1,
    "matrix_size": lambda ref: [48, 40, 1],
    "field_of_view": lambda ref: [96.0, 80.0, 5.0],
    "data_type": lambda ref: ismrmrd.DATATYPE_FLOAT,
}


def plain(value):
    return value if isinstance(value, int) else list(value)


def test_headers_follow_the_rules():
    prepared, _, _, images = emitted()
    assert [i.image_series_index for i in images] == [1, 10]
    for image in images:
        head = image.getHead()
        for name, rule in RULES.items():
            assert plain(getattr(head, name)) == rule(prepared.reference), name
        assert image.is_flag_set(ismrmrd.IMAGE_LAST_IN_SLICE)


def test_pixels_arrive_in_place():
    _, result, _, images = emitted()
    np.testing.assert_allclose(images[0].data[0, 0], result.map, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(images[1].data[0, 0], result.std, rtol=1e-6)


def test_all_series():
    maps = "image,mean,phase,map,std,csm,samples"
    _, _, _, images = emitted(**{"output.maps": maps, "output.series_base": "100"})
    assert [i.image_series_index for i in images] == [101, 102, 103, 104, 110, 111, 120, 120, 120]
    assert [i.image_index for i in images[-3:]] == [1, 2, 3]
    csm = images[5]
    assert (csm.channels, csm.data.dtype, csm.image_type) == (4, np.complex64, ismrmrd.IMTYPE_COMPLEX)
    assert images[2].image_type == ismrmrd.IMTYPE_PHASE


def test_images_are_numbered_by_their_place_in_the_scan():
    """A worker that sees one slice only, or later ones first, gives it the number it has in the whole scan."""
    encoding = prepared_of(Scan(n_slices=6, n_repetitions=3)).encoding
    keys = {FrameKey(0, s, 0, 0, r, 0): s + 6 * r for s in range(6) for r in range(3)}
    assert {key: number_of_frame(key, encoding) for key in keys} == keys
    assert number_of_frame(FrameKey(0, 6, 0, 0, 0, 0), encoding) is None

    prepared, result, emitter, _ = emitted(Scan(n_slices=6, n_repetitions=3))
    late = replace(prepared, key=FrameKey(0, 4, 0, 0, 2, 0))
    for image in emitter.images(result, late):
        assert image.image_index == 4 + 6 * 2 + 1
        assert image.meta["GADGETRON_ImageNumber"] == str(image.image_index)
    prepared, result, emitter, _ = emitted(Scan(n_slices=6), **{"output.maps": "samples"})
    fourth = replace(prepared, key=FrameKey(0, 3, 0, 0, 0, 0))
    # three samples of each frame, numbered through
    assert [image.image_index for image in emitter.images(result, fourth)] == [10, 11, 12]

    prepared, result, emitter, _ = emitted(Scan(n_slices=6, n_repetitions=3))
    emitter.images(result, late)
    unknown = replace(prepared, key=FrameKey(0, 9, 0, 0, 0, 0))
    assert emitter.images(result, unknown)[0].image_index == 18  # past all others
    # another measurement counts anew: no number comes twice in a series
    assert emitter.images(result, late)[0].image_index == 19


def test_estimate_chooses_the_image():
    _, result, _, (image, _) = emitted(**{"output.estimate": "mean"})
    np.testing.assert_allclose(image.data[0, 0], result.mean, rtol=2e-5, atol=1e-5)
    assert image.meta["POGMDM_Estimate"] == "mean"
    _, result, _, (image, _) = emitted(result_changes={"map": None, "estimate": "warm_start"})
    assert image.meta["POGMDM_Estimate"] == "warm_start"


@pytest.mark.fault("F46")
def test_one_sample_has_no_std_series():
    _, _, _, images = emitted(**{"sampler.n_samples": "1"})
    assert [i.image_series_index for i in images] == [1]
    assert images[0].meta["POGMDM_UncertaintyMethod"] == "off"


def test_folds_alone_make_a_std_series_that_says_so():
    changes = {"n_samples": 0, "uncertainty_method": "folds", "uncertainty": {"folds": 0.25, "untested": 0.1}}
    _, _, _, images = emitted(result_changes=changes)
    assert [i.image_series_index for i in images] == [1, 10]
    meta = images[1].meta
    assert meta["POGMDM_UncertaintyMethod"] == "folds"
    assert meta["POGMDM_UncertaintyScales"] == "folds=0.25 untested=0.1"
    assert meta["POGMDM_UncertaintyIntervals"] == "0.5=0.6745 0.8=1.282 0.95=1.96"
    assert "held-out" in meta["POGMDM_Std"] and "not per lesion" in meta["POGMDM_Std"]


def test_meta_survives_the_wire():
    _, _, _, images = emitted()
    image, std = [ismrmrd.Image.from_bytes(i.to_bytes()) for i in images]
    for meta in (image.meta, std.meta):
        # a list of one would come back as a string, which receivers then join letter by letter
        for name in ("GADGETRON_ImageComment", "ImageComments", "ImageComment", "ImageProcessingHistory"):
            assert isinstance(meta[name], list), name
            assert len(meta[name]) >= 2, name
        assert isinstance(meta["SeriesDescriptionAdditional"], str)
        assert [float(v) for v in meta["ImageRowDir"]] == [0, 1, 0]
        assert [float(v) for v in meta["ImageColumnDir"]] == [-1, 0, 0]
        assert meta["Keep_image_geometry"] == "1"
    assert (image.meta["GADGETRON_DataRole"], image.meta["DataRole"]) == ("Image", "Image")
    assert std.meta["GADGETRON_DataRole"] == "STD_MAP"
    assert std.meta["DataRole"] == ["Quantitative", "STD_MAP"]
    assert any("not a calibrated" in word for word in std.meta["ImageComments"])  # the fake core samples
    own = {k.removeprefix("POGMDM_"): v for k, v in std.meta.items() if k.startswith("POGMDM_")}
    assert set(own) >= {
        "Version", "WeightsSha256", "SettingsHash", "Seed", "NSamples", "NSteps", "Estimate", "UncertaintyMethod",
        "NoiseWhitened", "NoiseStd", "DataResidual", "Status", "Warnings", "UnitsOfStd", "Duration",
        "DurationByStage", "Trajectory", "Channels",
    }  # fmt: skip
    assert (own["NSamples"], own["Status"], own["NoiseWhitened"], own["Trajectory"]) == ("3", "ok", "True", "cartesian")


def test_settings_hash_follows_the_settings():
    hashes = {emitted(**s)[3][0].meta["POGMDM_SettingsHash"] for s in ({}, {"sampler.seed": "1"}, {"log": "debug"})}
    assert len(hashes) == 2


def test_missing_directions_become_the_identity(caplog):
    _, _, _, images = emitted(Scan(directions=False))
    assert list(images[0].read_dir) == [1, 0, 0]
    assert list(images[0].slice_dir) == [0, 0, 1]
    assert "NO_DIRECTIONS" in images[0].meta["POGMDM_Warnings"]
    assert caplog.text.count("carry no directions") == 1


@pytest.mark.fault("F61")
def test_non_finite_pixels_are_refused():
    with pytest.raises(OutputError, match="E602 .*the std"):
        emitted(result_changes={"std": torch.full((40, 48), float("nan"))})


@pytest.mark.fault("F62")
def test_a_series_keeps_one_shape():
    prepared, result, emitter, _ = emitted()
    other = prepared_of(Scan(nx=32))
    small = reconstruct(other.frame, None, load())
    with pytest.raises(OutputError, match="E604 series 1 "):
        emitter.images(small, other)


def test_fallback_is_labelled():
    prepared, result, emitter, _ = emitted()
    (image,) = emitter.fallback(result.image, prepared)
    assert image.image_series_index == 90
    assert "FALLBACK" in image.meta["ImageComments"]
    assert "FALLBACK" in image.meta["POGMDM_Warnings"]


def test_series_numbers_are_those_of_the_contract():
    numbers = {name: s.offset for name, s in SERIES.items()}
    assert numbers == {
        "image": 1, "mean": 2, "phase": 3, "map": 4, "std": 10, "csm": 11, "samples": 20, "fallback": 90
    }  # fmt: skip


@pytest.mark.fault("F21")
def test_grid_crops_to_the_field_of_view():
    image = np.arange(8 * 12.0).reshape(8, 12)
    found = to_recon_linear(image, (80.0, 120.0), Space((6, 4, 1), (60.0, 40.0, 5.0)))
    np.testing.assert_array_equal(found, image[2:6, 3:9])


@pytest.mark.parametrize(("old", "new"), [((16, 20), (32, 30)), ((17, 21), (32, 44)), ((32, 40), (16, 21))])
@pytest.mark.fault("F21")
def test_grid_resampling_keeps_place_and_intensity(old, new):
    recon = Space((new[1], new[0], 1), (100.0, 100.0, 5.0))

    def blob(shape):
        y, x = np.meshgrid(*[(np.arange(n) - n // 2) / n for n in shape], indexing="ij")
        return np.exp(-((y - 0.1) ** 2 + (x + 0.15) ** 2) / (2 * 0.11**2))

    band_limited = to_recon_complex(blob(old) * np.exp(0.3j), (100.0, 100.0), recon)
    np.testing.assert_allclose(np.abs(band_limited), blob(new), atol=0.02)
    linear = to_recon_linear(blob(old), (100.0, 100.0), recon)
    np.testing.assert_allclose(linear, blob(new), atol=0.08)
    assert linear.min() >= blob(old).min()
