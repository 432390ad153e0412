import contextlib
import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import ismrmrd
import numpy as np
import pytest

from gadget.files.scan_file import open_scan
from gadget.phantom.sampling import ScanPlan
from gadget.phantom.write import write_phantom
from gadget.progress import ProgressDisplay
from gadget.replay.play import Job, error_from_text, replay
from pogmdm_core import errors

HELPERS = Path(__file__).resolve().parents[2] / "helpers"
N_READOUTS = 16 + 16  # noise and half of 32 lines


class Lines(ProgressDisplay):
    def __init__(self):
        super().__init__(bar=False)
        self.lines = []

    def log(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def scan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_phantom(path, ScanPlan(shape=(32, 32), n_coils=2, acceleration=2))
    with contextlib.closing(ismrmrd.Dataset(str(path), "dataset")) as dataset:
        for stamp in (0, 5):
            wave = ismrmrd.Waveform.from_array(np.zeros((1, 7), dtype=np.uint32))
            wave.time_stamp = stamp
            dataset.append_waveform(wave)
    return path


@pytest.fixture
def fake(monkeypatch, tmp_path, scan_file):
    """Replays the scan through one of the stand-ins."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))

    def run(target, display=None, **kwargs):
        job = Job(str(scan_file), tmp_path / "out.h5", module="fake_gadget", target=target, **kwargs)
        return replay(job, display or Lines())

    return run


def read(path, series, index=0, group="dataset"):
    with contextlib.closing(ismrmrd.Dataset(str(path), group, create_if_needed=False)) as dataset:
        return dataset.read_image(f"image_{series}", index)


def nothing_is_left(folder):
    return list(folder.iterdir()) == []


@pytest.mark.e2e
def test_everything_is_sent_and_every_image_is_written(fake, tmp_path):
    chosen = [("preset", "fast"), ("sampler.n_samples", "3")]
    outcome = fake("count", properties=chosen, out_group="mine")
    assert outcome.series == {1: 1, 2: 1, 3: 2}
    out = tmp_path / "out.h5"
    assert read(out, 1, group="mine").data.flat[0] == N_READOUTS
    assert read(out, 2, group="mine").data.flat[0] == 2
    assert read(out, 3, 0, "mine").data.flat[0] == 3
    assert read(out, 3, 1, "mine").data.flat[0] == 1
    assert read(out, 1, group="mine").data.shape == (1, 1, 4, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.e2e
def test_sending_and_receiving_run_at_the_same_time(monkeypatch, tmp_path, scan_file):
    # `chatty` sends 40 MB before it reads and the scan has 13 MB: neither fits in the sockets' buffers,
    # so a replay that sends everything before it reads never returns
    with open_scan(str(scan_file)) as scan:
        header, messages = scan.header, b"".join(scan.messages)
    stream = tmp_path / "long.mrd"
    stream.write_bytes(struct.pack("<HI", 3, len(header)) + header + 400 * messages + struct.pack("<H", 4))
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    outcome = replay(Job(str(stream), tmp_path / "out.h5", module="fake_gadget", target="chatty"), Lines())
    assert outcome.series == {1: 1, 2: 1, 3: 2, 7: 40}
    assert read(tmp_path / "out.h5", 1).data.flat[0] == 400 * N_READOUTS


@pytest.mark.e2e
def test_progress_and_log_lines_are_relayed(fake):
    display = Lines()
    fake("progress", display)
    assert "hello from the gadget" in display.lines
    stages = [line for line in display.lines if line.startswith("sampling frame ")]
    assert [line.split(",")[0] for line in stages] == [f"sampling frame {2 * i}/20" for i in range(11)]
    assert not any("POGMDM_PROGRESS" in line for line in display.lines)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("silent", errors.OutputError, "E605"),
        ("crash", errors.ComputeError, r"E500 .*status 1 \(ValueError\)"),
        ("die", errors.TransportError, "E401"),
        ("mixed", errors.OutputError, "E604 series 1 mixes"),
        ("missing_target", errors.ComputeError, r"E500 .*\(TypeError\)"),
    ],
)
def test_a_failing_gadget_is_an_error_and_leaves_nothing(fake, tmp_path, target, error, message):
    display = Lines()
    with pytest.raises(error, match=message) as caught:
        fake(target, display)
    assert nothing_is_left(tmp_path)
    assert "ZZPATIENTZZ" not in str(caught.value) + "".join(display.lines)
    assert "Traceback" not in "".join(display.lines)


@pytest.mark.e2e
@pytest.mark.fault("F01")
def test_images_before_an_error_are_kept_and_the_error_is_told(fake, tmp_path):
    outcome = fake("coded_error")
    assert str(outcome.failure) == "E214 matrixSize.x is 0, expected 8..1024."
    assert isinstance(outcome.failure, errors.HeaderError)
    assert outcome.series == {1: 1}
    assert (tmp_path / "out.h5").read_bytes().startswith(b"\x89HDF")


@pytest.mark.e2e
@pytest.mark.fault("F54")
def test_a_failed_replay_keeps_the_old_output(fake, tmp_path):
    out = tmp_path / "out.h5"
    out.write_text("mine")
    with pytest.raises(errors.OutputError, match="E603.*--overwrite"):
        fake("count")
    with pytest.raises(errors.OutputError, match="E605"):
        fake("silent", overwrite=True)
    assert out.read_text() == "mine"
    assert fake("count", overwrite=True).series[1] == 1
    assert out.read_bytes().startswith(b"\x89HDF")


@pytest.mark.e2e
def test_a_readout_that_contradicts_its_header_is_an_input_error(fake, tmp_path, scan_file, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    broken = tmp_path / "in"
    broken.mkdir()
    broken = broken / "broken.h5"
    broken.write_bytes(scan_file.read_bytes())
    with h5py.File(broken, "r+") as file:
        row = file["dataset/data"][20]
        row["data"] = row["data"][:10]
        file["dataset/data"][20] = row
    job = Job(str(broken), tmp_path / "out.h5", module="fake_gadget", target="silent")
    with pytest.raises(errors.DataError, match="E301 readout 20 announces 2 channels of 64 samples"):
        replay(job, Lines())
    assert not (tmp_path / "out.h5").exists()


def drop_header(file):
    del file["dataset/xml"]


def empty_header(file):
    file["dataset/xml"][0] = b"<html>ZZPATIENTZZ</html>"


def drop_data(file):
    del file["dataset/data"]


@pytest.mark.parametrize(
    ("change", "group", "error", "message"),
    [
        (drop_header, "dataset", errors.HeaderError, "E201 .*no header"),
        (empty_header, "dataset", errors.HeaderError, "E201 .*not ISMRMRD XML"),
        (drop_data, "dataset", errors.DataError, "E331 .*no acquisitions"),
        (lambda file: None, "other", errors.DataError, "E301 .*no group 'other'; it has: dataset"),
    ],
)
def test_unusable_files_are_refused(tmp_path, scan_file, change, group, error, message):
    path = tmp_path / "scan.h5"
    path.write_bytes(scan_file.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(error, match=message) as caught, open_scan(str(path), group):
        pass
    assert "ZZPATIENTZZ" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x89HDF\r\n\x1a\nand no more"])
def test_files_that_are_no_scans_are_refused(tmp_path, content):
    path = tmp_path / "scan.h5"
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match="E301"), open_scan(str(path)):
        pass
    with pytest.raises(errors.DataError, match="E301 cannot read"), open_scan(str(path) + ".absent"):
        pass


def test_a_damaged_file_is_an_input_error_and_the_callers_errors_are_not(tmp_path, scan_file):
    path = tmp_path / "scan.h5"
    path.write_bytes(scan_file.read_bytes().replace(b"GCOL", b"XXXX"))  # the header's text is in such a heap
    with pytest.raises(errors.DataError, match="E301"), open_scan(str(path)):
        pass
    with pytest.raises(RuntimeError, match="mine"), open_scan(str(scan_file)):
        raise RuntimeError("mine")


def test_header_is_cleaned_as_the_server_does(tmp_path, scan_file):
    path = tmp_path / "scan.h5"
    path.write_bytes(scan_file.read_bytes())
    with h5py.File(path, "r+") as file:
        text = file["dataset/xml"][0].decode()
        text = text.replace("<encoding>", "<vendorThing>1</vendorThing><encoding>", 1)
        del file["dataset/xml"]
        file["dataset"].create_dataset(
            "xml", data=np.array([text.encode() + b"\n"], dtype=object), dtype=h5py.special_dtype(vlen=bytes)
        )
    with open_scan(str(path)) as scan, open_scan(str(scan_file)) as clean:
        assert b"vendorThing" not in scan.header
        assert scan.header == clean.header


def test_waveforms_go_between_the_readouts_of_their_time(scan_file):
    with open_scan(str(scan_file)) as scan:
        idents = [struct.unpack("<H", message[:2])[0] for message in scan.messages]
    assert idents == [1026] + [1008] * 5 + [1026] + [1008] * (N_READOUTS - 5)


def test_a_stream_gives_the_same_messages_as_the_file(tmp_path, scan_file):
    with open_scan(str(scan_file)) as scan:
        header, messages = scan.header, list(scan.messages)
    stream = tmp_path / "scan.mrd"
    start = struct.pack("<HI", 3, len(header)) + header
    stream.write_bytes(start + b"".join(messages) + struct.pack("<H", 4))
    with open_scan(str(stream)) as scan:
        assert scan.header == header
        assert list(scan.messages) == messages
    stream.write_bytes(start + b"".join(messages))
    with open_scan(str(stream)) as scan, pytest.raises(errors.TransportError, match="E402 .*cut short"):
        list(scan.messages)
    stream.write_bytes(start + struct.pack("<H", 4))
    with pytest.raises(errors.DataError, match="E331"), open_scan(str(stream)):
        pass


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("E103 no such thing", errors.ConfigError, "E103 no such thing"),
        ("ERROR: E330 NaN", errors.DataError, "E330 NaN"),
        ("E510 diverged\n  at step 3", errors.ComputeError, "E510 diverged at step 3"),
        ("E602 x", errors.OutputError, "E602 x"),
        ("something else", errors.ComputeError, "E500 the gadget reports: something else"),
    ],
)
def test_error_lines_become_errors_of_their_family(text, kind, shown):
    error = error_from_text(text)
    assert type(error) is kind
    assert str(error) == shown


def test_the_scan_itself_is_never_the_output(scan_file, tmp_path):
    path = tmp_path / "scan.h5"
    path.write_bytes(scan_file.read_bytes())
    with pytest.raises(errors.OutputError, match="E603 .*the scan itself"):
        replay(Job(source=str(path), output=path, overwrite=True))
    assert path.read_bytes() == scan_file.read_bytes()


@pytest.mark.parametrize("n_read", [0, 6])
def test_a_disk_that_cannot_be_read_is_an_error_of_the_input(monkeypatch, n_read):
    class Failing(io.BytesIO):
        def read(self, most=-1):
            if self.tell() >= n_read:
                raise OSError(5, "Input/output error")
            return super().read(most)

    begun = struct.pack("<HI", 3, 1000)  # a header is announced
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Failing(begun)))
    with pytest.raises(errors.DataError, match="E301 stdin cannot be read: Input/output error"), open_scan("-"):
        pytest.fail("opened")
