"""What is installed, where it comes from, and whether a tiny reconstruction works."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterator
from pathlib import Path

_PACKAGES = (
    "pogmdm-gadget",
    "torch",
    "numpy",
    "ismrmrd",
    "gadgetron",
    "h5py",
    "pydantic",
    "numba",
    "finufft",
    "cufinufft",
)
_OPTIONAL = ("cufinufft",)


def examine() -> Iterator[tuple[str, str, bool]]:
    """Yield findings as (what, value, whether that is all right), the quick ones first."""
    yield "python", platform.python_version(), True
    for name in _PACKAGES:
        version = _version(name)
        missing = "not installed (optional)" if name in _OPTIONAL else "NOT INSTALLED"
        yield name, version or missing, version is not None or name in _OPTIONAL
    yield "gadget from", *_gadget_origin()
    yield "XML configs", *_chains()
    yield "device", *_device()
    yield "weights", *_weights()
    yield "self-test", *_self_test()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gadget_origin() -> tuple[str, bool]:
    """Where `import gadget` leads; another package of that name first on the path would win."""
    here = Path(__file__).resolve().parents[1]
    spec = importlib.util.find_spec("gadget")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if found != here:
        return f"{found}: SHADOWED, this command runs from {here}. Check PYTHONPATH.", False
    return str(here), True


def _chains() -> tuple[str, bool]:
    from gadget.settings.configs import chain_folders, chains

    found = chains()
    if not found:
        return "NOT FOUND. Reinstall, or copy xml_configs/ yourself.", False
    return f"{chain_folders()[0]} ({', '.join(found)})", True


def _device() -> tuple[str, bool]:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} (cuda {torch.version.cuda})", True
    return f"CPU, {torch.get_num_threads()} threads", True


def _weights() -> tuple[str, bool]:
    from pogmdm_core.errors import PogmdmError

    try:
        import pogmdm_core as pg

        prior = pg.load_prior()
    except (PogmdmError, OSError) as error:
        return f"NOT LOADED: {error}", False
    return f"{prior.name} sha256 {prior.sha256}", True


def _self_test() -> tuple[str, bool]:
    """Reconstruct a tiny phantom and compare it with the truth; a few seconds."""
    start = time.monotonic()
    try:
        error = _tiny_reconstruction()
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is the finding
        return f"FAILED: {type(failure).__name__}: {failure}", False
    seconds = time.monotonic() - start
    if not error < 0.3:
        return f"FAILED: relative error {error:.2f} after {seconds:.1f} s", False
    return f"ok, relative error {error:.2f}, {seconds:.1f} s", True


def _tiny_reconstruction() -> float:
    """Relative error of the image of a 64 x 64 phantom at about half the lines."""
    import torch

    import pogmdm_core as pg
    from pogmdm_core.measurement.phantom import Phantom

    phantom = Phantom.head(n_coils=4)
    generator = torch.Generator().manual_seed(0)
    noise_std = 0.005
    kspace = phantom.cartesian((64, 64)).to(torch.complex64)
    kspace = kspace + noise_std * torch.view_as_complex(torch.randn(*kspace.shape, 2, generator=generator))
    lines = torch.arange(64)
    kept = (lines % 2 == 0) | ((lines - 32).abs() < 6)
    frame = pg.KSpaceFrame.cartesian(kspace, kept[:, None].expand(64, 64).contiguous(), noise_std)
    settings = pg.Settings.model_validate(
        {"n_samples": 2, "n_steps": 5, "map": {"steps": 20}, "coils": {"newton_steps": 5}, "device": "cpu"}
    )
    result = pg.reconstruct(frame, pg.load_prior(), settings)
    truth = phantom.truth((64, 64)).float()
    # The estimate's own intensity scale is not tested here, only its structure.
    scale = (result.image * truth).sum() / result.image.square().sum()
    return float((scale * result.image - truth).norm() / truth.norm())
