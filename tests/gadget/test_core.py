from types import SimpleNamespace

import pytest

import gadget.core
from gadget.core import resident_prior


@pytest.fixture
def core(monkeypatch):
    """A core whose priors are files of one word each, which is their checksum."""
    files = {"a": "one", "b": "two", "c": "three", "a again": "one"}
    monkeypatch.setattr(gadget.core, "_kept", type(gadget.core._kept)())
    return SimpleNamespace(files=files, load_prior=lambda name: SimpleNamespace(sha256=files[name]))


def test_a_prior_stays_from_scan_to_scan(core):
    first = resident_prior(core, "a")
    assert resident_prior(core, "a") is first and resident_prior(core, "a again") is first
    assert resident_prior(core, "b") is not first


def test_a_file_that_changed_is_another_prior(core):
    first = resident_prior(core, "a")
    core.files["a"] = "one, trained longer"
    assert resident_prior(core, "a") is not first


def test_the_oldest_goes(core):
    first, second = resident_prior(core, "a"), resident_prior(core, "b")
    assert resident_prior(core, "a") is first
    resident_prior(core, "c")
    assert resident_prior(core, "a") is first
    assert resident_prior(core, "b") is not second


def test_another_core_has_priors_of_its_own(core):
    other = SimpleNamespace(load_prior=lambda name: SimpleNamespace(sha256="one"))
    assert resident_prior(core, "a") is not resident_prior(other, "a")
