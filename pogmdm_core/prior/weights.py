"""Weights files: safetensors with a schema; names, shapes, dtypes and finiteness are checked.

A file holds the parameters of the filter bank and the experts, the experts' widths, and one JSON
text in its metadata (`pogmdm`): how to rebuild both parts, the trained noise range, and the
training record. Pickles are never opened.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pogmdm_core.errors import ConfigError
from pogmdm_core.prior.config import BankConfig, ExpertConfig, Range, build_prior
from pogmdm_core.prior.model import ProductPrior
from pogmdm_core.settings import Section

FORMAT = 1
_MAX_BYTES = 16 * 2**20
_KEY = "pogmdm"


class Card(Section):
    """The JSON text in a weights file."""

    format: int = Field(ge=FORMAT, le=FORMAT)
    name: str
    level_range: Range
    bank: BankConfig
    experts: ExpertConfig
    training: dict[str, Any] = Field(default_factory=dict, description="settings, data and validation")


def _folder() -> Path:
    return Path(str(importlib.resources.files("pogmdm_core"))) / "data" / "weights"


def shipped_weights() -> dict[str, Path]:
    """Names and files of the weights in this package."""
    return {path.stem: path for path in sorted(_folder().glob("*.safetensors"))}


def load_prior(name_or_path: str | Path = "default", device: torch.device | str = "cpu") -> ProductPrior:
    """Load a prior by shipped name or from a file.

    Parameters
    ----------
    name_or_path
        A name from `shipped_weights`, or a path to a .safetensors file.
    device
        Where the model shall live.

    Raises
    ------
    ConfigError
        E120 missing, E121 not safetensors, damaged, or not what was shipped under that name, E122 not one of our
        models or unknown format, E123 wrong names or shapes, E124 NaN or infinite numbers, E125 values out of range.
    """
    path = shipped_weights().get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        names = ", ".join(shipped_weights())
        raise ConfigError(120, f"there are no weights '{name_or_path}'.", f"Shipped are: {names}; or give a file.")
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(121, f"weights file {path.name} is larger than {_MAX_BYTES} bytes: not one of ours.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            121, f"weights file {path.name} is damaged or not safetensors ({error}).", "Pickles are not read."
        ) from error
    prior = _rebuild(_read_card(text, path.name), tensors, path.name)
    prior.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    pinned = _pinned(path.name) if path.parent == _folder() else None
    if pinned and prior.sha256 != pinned:
        raise ConfigError(
            121,
            f"weights file {path.name} has sha256 {prior.sha256[:12]}..., but {pinned[:12]}... was shipped.",
            "Install the package again.",
        )
    return prior.to(device)


def _pinned(name: str) -> str | None:
    """The sha256 with which weights are shipped; None for those that somebody has put beside them."""
    lines = (_folder() / "SHA256SUMS").read_text().splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f"  {name}")), None)


def read_card(path: Path) -> Card:
    """Return the record inside a weights file (see `Card`); raises ConfigError E121 or E122."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise ConfigError(121, f"weights file {path.name} is damaged or not safetensors ({error}).") from error
    return _read_card(text, path.name)


def save_prior(prior: ProductPrior, path: Path, training: dict[str, Any] | None = None) -> str:
    """Write a prior as safetensors (complete or not at all) and return the file's sha256."""
    card = {
        "format": FORMAT,
        "name": prior.name,
        "level_range": list(prior.level_range),
        "bank": prior.bank.config(),
        "experts": prior.experts.config(),
        "training": training or {},
    }
    tensors = {key: value.detach().float().contiguous().cpu() for key, value in prior.state_dict().items()}
    data = save(tensors, metadata={_KEY: json.dumps(card, sort_keys=True)})
    partial = path.with_name(f"{path.name}.writing")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def _read_card(text: str | None, name: str) -> Card:
    if text is None:
        raise ConfigError(122, f"{name} is a safetensors file of something else (no '{_KEY}' record).")
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(122, f"the record of weights {name} is not valid: {where}: {first['msg']}.") from error


def _rebuild(card: Card, tensors: dict[str, torch.Tensor], name: str) -> ProductPrior:
    prior = build_prior(card.bank, card.experts, card.level_range, card.name)
    expected = {key: tuple(value.shape) for key, value in prior.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != found:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ConfigError(
            123,
            f"weights {name}: '{differing[0]}' is {found.get(differing[0], 'missing')}, "
            f"expected {expected.get(differing[0], 'nothing of that name')}.",
            "If another version made them, train them again: pogmdm train.",
        )
    for key, value in tensors.items():
        if not value.dtype.is_floating_point or not bool(torch.isfinite(value).all()):
            raise ConfigError(124, f"weights {name}: '{key}' holds NaN, infinite or non-float numbers.")
    for key in ("experts.width", "experts.sigma_0"):
        if key in tensors and bool((tensors[key] <= 0).any()):
            raise ConfigError(125, f"weights {name}: '{key}' must be positive.")
    prior.load_state_dict(tensors)
    for parameter in prior.parameters():
        parameter.requires_grad_(False)
    return prior
