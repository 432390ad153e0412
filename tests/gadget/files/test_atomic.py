import errno

import pytest

from gadget.files.atomic import complete_file
from pogmdm_core.errors import OutputError


def test_a_complete_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    with complete_file(path, overwrite=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError(errno.EMFILE, "too many files"), OSError("no number")])
@pytest.mark.fault("F54")
def test_errors_of_the_block_pass_unchanged_and_leave_nothing(tmp_path, error):
    with pytest.raises(type(error)) as caught, complete_file(tmp_path / "out", overwrite=False) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.fault("F54")
def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path, number):
    with pytest.raises(OutputError, match="E601"), complete_file(tmp_path / "out", overwrite=False) as temporary:
        temporary.write_text("half")
        raise OSError(number, "reason")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("F54")
def test_a_file_that_cannot_be_renamed_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="E601"), complete_file(tmp_path / "out", overwrite=False):
        pass  # nothing was written
