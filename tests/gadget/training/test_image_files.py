import contextlib
import gzip
import io
import json
import sys
import zipfile

import ismrmrd
import numpy as np
import pytest
import torch
from PIL import Image

from gadget.training.image_files import ImageSource, read_images, read_sources
from gadget.training.image_formats import format_of
from pogmdm_core.errors import ConfigError, DataError


def pixels(seed=0, shape=(40, 36), dtype=np.float32, top=900):
    """Smooth blobs, nowhere empty."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((5, 5))
    y, x = (np.linspace(0, 4, n) for n in shape)
    rows = np.array([np.interp(x, range(5), row) for row in coarse])
    image = np.array([np.interp(y, range(5), column) for column in rows.T]).T
    return (0.2 * top + 0.8 * top * image).astype(dtype)


def scaled(image):
    image = np.abs(image).astype(np.float32)
    return torch.from_numpy(image / np.quantile(image, 0.999))


def only(paths, *sources):
    (found,) = read_images([paths] if not isinstance(paths, list) else paths, sources)
    return found


def png(path, image):
    Image.fromarray(image).save(path)


def nifti(path, volume, zooms):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_zooms(zooms)
    nibabel.save(image, path)


def dicom(path, image, patient="p1", **tags):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    scan = pydicom.Dataset()
    scan.file_meta = meta
    scan.SOPClassUID, scan.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    scan.PatientID, scan.Modality = patient, "MR"
    if image is not None:
        scan.Rows, scan.Columns = image.shape[-2:]
        if image.ndim == 3:
            scan.NumberOfFrames = image.shape[0]
        scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
        scan.BitsAllocated = scan.BitsStored = 16
        scan.HighBit, scan.PixelRepresentation = 15, 0
        scan.PixelData = image.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(scan, name, value)
    scan.save_as(path, enforce_file_format=True)


def ismrmrd_images(path, *images):
    """(series, pixels (channel, z, y, x), image type, attributes) each."""
    with contextlib.closing(ismrmrd.Dataset(str(path), "dataset")) as dataset:
        for series, data, kind, meta in images:
            image = ismrmrd.Image.from_array(data, transpose=False)
            image.image_type = kind
            image.field_of_view[:] = (72.0, 80.0, 5.0)
            image.attribute_string = meta
            dataset.append_image(f"image_{series}", image)


# --- one kind of file after the other ------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures(tmp_path, ending):
    image = pixels(dtype=np.uint8, top=250)
    png(tmp_path / f"a.{ending}", image)
    found = only(tmp_path / f"a.{ending}")
    assert (found.image - scaled(image)).abs().max() < (1e-6 if ending == "png" else 0.05)
    assert found.quantum == pytest.approx(1 / np.quantile(image, 0.999), rel=0.05)
    assert (found.anatomy, found.subject) == ("a", f"a-a.{ending}")


def test_sixteen_bit_pictures_have_no_quantum(tmp_path):
    image = pixels(dtype=np.uint16, top=40000)
    png(tmp_path / "a.png", image)
    found = only(tmp_path / "a.png")
    assert torch.allclose(found.image, scaled(image), atol=1e-6)
    assert found.quantum == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.complex64])
def test_npy_of_one_slice(tmp_path, dtype):
    image = pixels().astype(dtype) * (1j if dtype == np.complex64 else 1)
    np.save(tmp_path / "a.npy", image)
    assert torch.allclose(only(tmp_path / "a.npy").image, scaled(image), atol=1e-6)


def test_npy_of_slices_is_one_subject(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([pixels(0), np.zeros((40, 36)), pixels(1)]))
    found = read_images([tmp_path / "a.npy"], [])
    assert len(found) == 2  # the empty slice is left out
    assert len({i.subject for i in found}) == 1
    assert torch.allclose(found[1].image, scaled(pixels(1)), atol=1e-6)


def test_npz_with_facts(tmp_path):
    meta = {"slices": [{"subject": "s1", "anatomy": "knee", "spacing_mm": [0.5, 0.6]}, {"subject": "s2"}]}
    np.savez(tmp_path / "a.npz", a0=pixels(0), a1=pixels(1), a2=pixels(2), meta=json.dumps(meta))
    (source,) = read_sources([tmp_path / "a.npz"], [])
    assert [i.subject for i in source.images] == ["s1", "s2", "a-2"]
    assert [i.anatomy for i in source.images] == ["knee", "a", "a"]
    assert source.found[0].pixel_mm == 0.6


def test_npz_volume_is_sampled_along_all_axes(tmp_path):
    volume = np.stack([pixels(0, (36, 36))] * 36)
    np.savez(tmp_path / "a.npz", vol=volume)
    assert len(read_images([tmp_path / "a.npz"], [])) == 3 * 4


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti_slices_across_the_coarse_axis(tmp_path, ending):
    volume = np.stack([pixels(i) for i in range(3)], axis=1).astype(np.int16)
    nifti(tmp_path / f"a.{ending}", volume, (1.0, 4.0, 0.8))
    (source,) = read_sources([tmp_path / f"a.{ending}"], [])
    assert len(source.found) == 3
    for i, found in enumerate(source.found):
        assert torch.allclose(found.image.image, scaled(volume[:, i]), atol=1e-6)
        assert found.pixel_mm == pytest.approx(1.0)


def test_nifti_scaling_2d_4d_and_isotropic(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(pixels().astype(np.int16)[:, :, None], np.eye(4))
    image.header.set_slope_inter(2.0, 0.0)
    nibabel.save(image, tmp_path / "flat.nii")
    assert only(tmp_path / "flat.nii").image.shape == (40, 36)
    nifti(tmp_path / "echoes.nii", np.stack([pixels()[:, :, None].repeat(2, 2)] * 3, axis=3), (1, 1, 5, 1))
    assert len(read_images([tmp_path / "echoes.nii"], [])) == 6
    nifti(tmp_path / "cube.nii", np.stack([pixels(0, (36, 36))] * 36), (1, 1, 1))
    assert len(read_images([tmp_path / "cube.nii"], [])) == 3 * 4


def test_nifti_2(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti2Image(pixels()[:, :, None], np.eye(4)), tmp_path / "a.nii")
    assert torch.allclose(only(tmp_path / "a.nii").image, scaled(pixels()), atol=1e-6)


def test_bids_names_say_the_subject(tmp_path):
    for subject in ("01", "02"):
        folder = tmp_path / "bids" / f"sub-{subject}" / "anat"
        folder.mkdir(parents=True)
        for contrast in ("T1w", "T2w"):
            nifti(folder / f"sub-{subject}_{contrast}.nii.gz", pixels()[:, :, None], (1, 1, 5))
    assert [i.subject for i in read_images([tmp_path / "bids"], [])] == ["bids-sub-01"] * 2 + ["bids-sub-02"] * 2


def test_dicom(tmp_path):
    image = pixels(dtype=np.uint16)
    dicom(tmp_path / "a.dcm", image, "anna", PixelSpacing=[0.7, 0.9], BodyPartExamined="KNEE")
    (source,) = read_sources([tmp_path / "a.dcm"], [])
    (found,) = source.found
    assert torch.allclose(found.image.image, scaled(image), atol=1e-6)
    assert (found.image.subject, found.image.anatomy, found.pixel_mm) == ("anna", "knee", 0.9)


def test_dicom_folder_without_endings(tmp_path):
    folder = tmp_path / "scan"
    folder.mkdir()
    dicom(folder / "IM0001", pixels(dtype=np.uint16))
    dicom(folder / "IM0002", np.stack([pixels(i, dtype=np.uint16) for i in range(3)]))
    dicom(folder / "report", None)
    (folder / "README").write_text("not an image")
    assert len(read_images([folder], [])) == 4
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"scan/{file.name}")
    assert len(read_images([tmp_path / "scan.zip"], [])) == 4


def test_ismrmrd_images(tmp_path):
    image = pixels()[None, None]
    ismrmrd_images(
        tmp_path / "a.h5",
        (1, image, ismrmrd.IMTYPE_MAGNITUDE, ""),
        (1, image, ismrmrd.IMTYPE_MAGNITUDE, ""),
        (3, image, ismrmrd.IMTYPE_PHASE, ""),
        (5, (1j * image).astype(np.complex64), ismrmrd.IMTYPE_COMPLEX, ""),
        (10, image, ismrmrd.IMTYPE_MAGNITUDE, ismrmrd.Meta({"DataRole": "STD_MAP"}).serialize()),
        (11, np.repeat(image, 4, 0).astype(np.complex64), ismrmrd.IMTYPE_COMPLEX, ""),
    )
    (source,) = read_sources([tmp_path / "a.h5"], [])
    assert len(source.found) == 3
    assert all(torch.allclose(i.image, scaled(pixels()), atol=1e-6) for i in source.images)
    assert source.found[0].pixel_mm == pytest.approx(2.0)


# --- folders, zips, rules --------------------------------------------------------------------------


def test_zip_of_everything(tmp_path):
    np.save(tmp_path / "b.npy", pixels(1))
    png(tmp_path / "a.png", pixels(dtype=np.uint8, top=250))
    ismrmrd_images(tmp_path / "c.h5", (1, pixels(2)[None, None], ismrmrd.IMTYPE_MAGNITUDE, ""))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("b.npy", "a.png", "c.h5"):
            archive.write(tmp_path / name, f"deep/{name}")
        archive.writestr("__MACOSX/deep/._a.png", b"resource fork")
        archive.writestr("deep/notes.txt", "nothing")
    found = read_images([tmp_path / "all.zip"], [])
    assert [i.subject for i in found] == ["all-deep/a.png", "all-deep/b.npy", "all-deep/c.h5"]


def test_same_names_in_different_folders_are_different_subjects(tmp_path):
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        np.save(tmp_path / "set" / name / "scan.npy", pixels())
    assert [i.subject for i in read_images([tmp_path / "set"], [])] == ["set-a/scan.npy", "set-b/scan.npy"]


def test_rules_reach_into_a_folder(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for name in ("knees", "other"):
        np.save(folder / f"{name}.npy", pixels())
    (folder / "README.md").write_text("words")
    rule = ImageSource(match="knees*", anatomy="knee", attribution="A. Nobody, CC0")
    first, second = read_sources([folder], [rule])
    assert first.rule.attribution == "A. Nobody, CC0"
    assert [i.anatomy for i in (*first.images, *second.images)] == ["knee", "other"]


def test_blocks_downsampling_and_thinning(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(6):
        png(folder / f"{number}.png", pixels(number, dtype=np.uint8, top=250))
    rule = ImageSource(match="set", downsample=2, subject_block=3, max_per_subject=2)
    found = read_images([folder], [rule])
    assert [i.subject for i in found] == ["set-0"] * 2 + ["set-1"] * 2
    assert found[0].image.shape == (20, 18)
    assert found[0].quantum == 0


# --- what is refused -------------------------------------------------------------------------------


def refused(path, *words, code=342, error=DataError):
    with pytest.raises(error) as caught:
        read_images([path], [])
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.npy", "a.npz", "a.nii", "a.nii.gz", "a.dcm", "a.h5", "a.zip"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_garbage_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name)


@pytest.mark.parametrize("kind", ["png", "npy", "npz", "nii", "nii.gz", "dcm", "h5", "zip"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_truncated_files_are_refused_by_name(tmp_path, kind, share):
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        png(path, np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    elif kind == "npy":
        np.save(path, pixels())
    elif kind == "npz":
        np.savez(path, a=pixels())
    elif kind.startswith("nii"):
        nifti(path, pixels()[:, :, None], (1, 1, 5))
    elif kind == "dcm":
        dicom(path, pixels(dtype=np.uint16))
    elif kind == "h5":
        ismrmrd_images(path, (1, pixels()[None, None], ismrmrd.IMTYPE_MAGNITUDE, ""))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", pixels().tobytes())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, path.name)


def test_a_bad_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("deep/bad.png", b"nonsense")
    refused(tmp_path / "set.zip", "set.zip: deep/bad.png")


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.full((40, 40), np.nan, np.float32), "NaN"),
        (np.array([{}] * 4, dtype=object).reshape(2, 2), "pickle"),
        (np.full((40, 40), "x"), "type"),
        (np.ones((2, 3, 40, 40)), "4 dimensions"),
        (np.ones(40), "1 dimensions"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, word):
    np.save(tmp_path / "a.npy", array)
    assert word in refused(tmp_path / "a.npy", "a.npy")


def test_raw_data_is_no_training_image(tmp_path):
    with contextlib.closing(ismrmrd.Dataset(str(tmp_path / "a.h5"), "dataset")) as dataset:
        dataset.append_acquisition(ismrmrd.Acquisition.from_array(np.ones((2, 32), np.complex64)))
    refused(tmp_path / "a.h5", "no image series")


def test_colour_dicom_is_refused(tmp_path):
    dicom(tmp_path / "a.dcm", pixels(dtype=np.uint16), SamplesPerPixel=3)
    refused(tmp_path / "a.dcm", "colour")


def test_nothing_usable(tmp_path):
    refused(tmp_path, code=343)
    np.save(tmp_path / "tiny.npy", np.ones((8, 8)))
    refused(tmp_path, code=343)
    (tmp_path / "a.txt").write_text("words")
    refused(tmp_path / "a.txt", "NIfTI")
    refused(tmp_path / "missing.npy", "missing.npy")


@pytest.mark.parametrize(("name", "module"), [("a.nii", "nibabel"), ("a.dcm", "pydicom")])
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"anything")
    refused(tmp_path / name, f"pip install {module}", code=126, error=ConfigError)


def test_kinds_by_name():
    assert format_of("X.NII.GZ") == "nifti"
    assert format_of("IM1", b"\0" * 128 + b"DICM") == "dicom"
    assert format_of("DICOMDIR", b"\0" * 128 + b"DICM") is None
    assert format_of("._a.png") is None
    assert format_of("readme.txt", b"words") is None


def test_gzip_inside_a_plain_name(tmp_path):
    nifti(tmp_path / "a.nii", pixels()[:, :, None], (1, 1, 5))
    buffer = io.BytesIO(gzip.compress((tmp_path / "a.nii").read_bytes()))
    (tmp_path / "b.nii").write_bytes(buffer.getvalue())
    assert torch.equal(only(tmp_path / "a.nii").image, only(tmp_path / "b.nii").image)
