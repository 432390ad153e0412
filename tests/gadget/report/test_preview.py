import ismrmrd
import numpy as np
import pytest
from PIL import Image

from gadget.files.hdf5_storage import hdf5_storage
from gadget.files.image_file import ImageFile
from gadget.report.preview import draw_previews, montage, write_previews
from pogmdm_core.errors import OutputError


def make(series, data, meta=None, image_type=1):
    image = ismrmrd.Image.from_array(
        np.asarray(data)[None, None],
        transpose=False,
        image_type=image_type,
        image_series_index=series,
        field_of_view=(1.0, 1.0, 1.0),
    )
    image.meta = meta or {}
    return image


@pytest.fixture
def output(tmp_path):
    bright_top_left = np.full((40, 60), 0.1, dtype=np.float32)
    bright_top_left[:10, :15] = 1.0
    with hdf5_storage(tmp_path / "out.h5") as storage, ImageFile(storage, "dataset") as file:
        file.append(make(1, bright_top_left, {"DataRole": "Image"}))
        file.append(make(10, bright_top_left, {"GADGETRON_DataRole": "STD_MAP"}))
        file.append(make(11, bright_top_left.astype(np.complex64), image_type=5))
    return tmp_path / "out.h5"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def corner_means(picture):
    """Mean brightness just inside the top left and the bottom right corner."""
    h, w = picture.shape[:2]
    return picture[h // 10 : h // 8, w // 10 : w // 8].mean(), picture[-h // 8 : -h // 10, -w // 8 : -w // 10].mean()


def test_one_picture_per_real_series(output, tmp_path):
    pictures = write_previews(draw_previews(output), tmp_path / "png" / "deep")
    assert [p.name for p in pictures] == ["image_1.png", "image_10.png"]
    assert all(p.parent == tmp_path / "png" / "deep" for p in pictures)


def test_images_are_grey_and_upright_and_std_is_coloured(output, tmp_path):
    image, std = (pixels(p) for p in write_previews(draw_previews(output), tmp_path))
    assert np.ptp(image, axis=2).max() == 0
    assert np.ptp(std, axis=2).max() > 50
    top_left, bottom_right = corner_means(image)
    assert top_left > 200
    assert bottom_right < 60
    assert image.shape[1] / image.shape[0] == pytest.approx(1.5, rel=0.1)


def test_montage_tiles_row_by_row():
    slices = np.arange(5)[:, None, None] * np.ones((5, 2, 3))
    assert montage(slices)[::2, ::3].tolist() == [[0, 1, 2], [3, 4, 0]]


def test_all_zero_and_nan_images_can_be_shown(tmp_path):
    with hdf5_storage(tmp_path / "out.h5") as storage, ImageFile(storage, "dataset") as file:
        file.append(make(1, np.zeros((8, 8), dtype=np.float32)))
        file.append(make(2, np.full((8, 8), np.nan, dtype=np.float32)))
    assert len(write_previews(draw_previews(tmp_path / "out.h5"), tmp_path)) == 2


def test_nothing_to_show_is_an_error(output, tmp_path):
    with pytest.raises(OutputError, match="E606 .*'other'"):
        draw_previews(output, "other")
    (tmp_path / "image_1.png").mkdir()
    with pytest.raises(OutputError, match="E601"):
        write_previews({"image_1": b"x"}, tmp_path)
