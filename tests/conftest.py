"""Shared by all tests."""

import os
import sys
from pathlib import Path

# Problems here are small, and threads that wait for each other on a busy machine cost minutes; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ismrmrd  # noqa: F401 - first: importing it resets the warnings filter, a lazy import inside a test would too
import pytest

pytest_plugins = ["fault_table"]
ROOT = Path(__file__).parents[1]
# tests/gadget and tests/core are on the path too; without this they would shadow the packages
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def mrd_data() -> Path:
    """Folder with real ISMRMRD files; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("POGMDM_DATA", ROOT.parent / "shared" / "data")) / "mrd"
    if not folder.is_dir():
        pytest.skip("no real data: set POGMDM_DATA")
    return folder
