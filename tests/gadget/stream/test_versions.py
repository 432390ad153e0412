"""The same bytes in and out whatever versions of numpy and ismrmrd are installed (`make test-oldest` takes others).

The golden file was made with numpy 2.4.6 and ismrmrd 1.15.0: python tests/gadget/stream/test_versions.py
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[2] / "golden" / "messages.npz"


def messages():
    """Readouts as a sender makes them, and the image and std that leave, as bytes of the wire."""
    import torch
    from helpers.frames import emitted
    from helpers.mrd_factory import Scan
    from helpers.peer import item_message

    scan = Scan(nx=16, ny=12, n_coils=2, oversampling=1, noise_std=0.0, noise_scan=False)
    pixels = torch.arange(192, dtype=torch.float32).reshape(12, 16) / 7
    changes = {"map": pixels, "std": 0.1 * pixels, "phase": torch.zeros(12, 16)}
    _, _, _, images = emitted(scan, changes)
    readouts = [item_message(acquisition) for acquisition in scan.acquisitions()]
    # what changes from version to version of this software, not of the libraries
    own = re.compile(rb"(POGMDM_(?:Version|SettingsHash)</name>\s*<value>)[^<]*")
    return [np.frombuffer(own.sub(rb"\1", m), np.uint8) for m in (*readouts, *map(item_message, images))]


@pytest.mark.fault("F66")
def test_bytes_do_not_depend_on_versions():
    with np.load(GOLDEN) as golden:
        expected = [golden[name] for name in sorted(golden)]
    found = messages()
    assert len(found) == len(expected) == 14
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.tobytes() == b.tobytes(), f"message {number}"


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2])]
    np.savez_compressed(GOLDEN, **{f"{i:02d}": m for i, m in enumerate(messages())})
