import subprocess
import sys

import h5py
import numpy as np
import pytest

from gadget.files.hdf5_storage import hdf5_storage

# a limit on the size of files is the full disk that a test may have
FULL_DISK = """
import gc, resource, signal, sys
from pathlib import Path
import ismrmrd, numpy as np
from gadget.files.atomic import complete_file
from gadget.files.hdf5_storage import hdf5_storage
from gadget.phantom.write import write_phantom
from gadget.phantom.sampling import ScanPlan
from gadget.files.image_file import ImageFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
path = Path(sys.argv[3])

def images():
    with complete_file(path, True) as temporary, hdf5_storage(temporary) as storage, ImageFile(storage, "g") as file:
        for number in range(20):
            file.append(ismrmrd.Image.from_array(np.ones((64, 64), np.float32), transpose=False))

def phantom():
    write_phantom(path, ScanPlan(shape=(64, 64), n_coils=4), overwrite=True, truth=True)

try:
    {"images": images, "phantom": phantom}[sys.argv[1]]()
except Exception as error:
    print(type(error).__name__, error)
gc.collect()
"""


@pytest.mark.parametrize("limit", [1000, 100_000])
@pytest.mark.parametrize("what", ["images", "phantom"])
@pytest.mark.fault("F54")
def test_a_full_disk_is_an_output_error_and_the_process_goes_on(tmp_path, what, limit):
    path = tmp_path / "out.h5"
    path.write_text("old")
    command = [sys.executable, "-c", FULL_DISK, what, str(limit), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("OutputError E601 cannot write"), done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_error_of_the_block_passes_where_the_disk_is_not_full(tmp_path):
    with pytest.raises(KeyError, match="mine"), hdf5_storage(tmp_path / "out.h5") as storage:
        storage.write(b"some")
        raise KeyError("mine")


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "out.h5"
    values = np.arange(1000.0)
    with hdf5_storage(path) as storage, h5py.File(storage, "w") as file:
        file["values"] = values
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["values"], values)
