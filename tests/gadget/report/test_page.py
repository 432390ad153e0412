import base64
import re

import ismrmrd
import numpy as np
import pytest

from gadget.files.hdf5_storage import hdf5_storage
from gadget.files.image_file import ImageFile
from gadget.report.page import write_report
from gadget.report.preview import draw_previews
from pogmdm_core.errors import OutputError


def image(series, meta):
    data = np.linspace(0, 1, 600, dtype=np.float32).reshape(1, 1, 20, 30)
    made = ismrmrd.Image.from_array(
        data, transpose=False, image_type=1, image_series_index=series, field_of_view=(60.0, 40.0, 5.0)
    )
    made.meta = meta
    return made


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "out.h5"
    meta = {"DataRole": "Image", "POGMDM_Estimate": "map", "POGMDM_Warnings": "<b>A & B</b>", "PatientName": "NOBODY"}
    with hdf5_storage(path) as storage, ImageFile(storage, "there") as file:
        file.append(image(1, meta))
        file.append(image(1, meta))
        file.append(image(10, {"DataRole": ["Quantitative", "STD_MAP"], "POGMDM_Std": "calibrated somehow"}))
    return path


def test_one_page_holds_pictures_facts_and_meaning(output, tmp_path):
    page = tmp_path / "report.html"
    write_report(output, draw_previews(output, "there"), page, "there")
    text = page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(p)[:8] for p in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert "image_1: image (map)" in text
    assert "image_10: calibrated somehow" in text
    assert "<td>Matrix</td><td>30 x 20</td>" in text
    assert "<td>Images</td><td>2</td>" in text
    assert "&lt;b&gt;A &amp; B&lt;/b&gt;" in text
    assert "NOBODY" not in text  # only our own attributes are shown
    # nothing is loaded from elsewhere
    assert not re.search(r"(src|href)=['\"](?!data:)|url\(|@import", text)


def test_an_existing_page_is_kept_unless_told(output, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(OutputError, match="E603"):
        write_report(output, {}, page, "there")
    assert page.read_text() == "mine"
    write_report(output, {}, page, "there", overwrite=True)
    assert page.read_text().startswith("<!doctype html>")
