"""The product of Gaussian mixture diffusion model: energy, score and denoiser of images.

E(x, level) = - sum_k a_k(level) sum_p log psi_k((K_k x)_p, level)            (corrected eq. 1)
score(x, level) = - grad E = sum_k K_k^T a_k phi_k(K_k x)

`level` is the standard deviation of the noise the image carries (zeta in the paper, 2t = zeta^2),
in units of the image scale. Complex images have independent real and imaginary parts under the
prior; as the filters are real, one complex Fourier transform serves both.

Source: Nagler, Zach & Pock, arXiv 2501.08662, eqs. 1-4; Zach et al., arXiv 2310.12653.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict

import torch

from pogmdm_core.lengths import padded_length
from pogmdm_core.prior.base import Experts, FilterBank
from pogmdm_core.prior.tables import ScoreTable

_WIDTH_GRID = (96, 96)
_SAME = 1e-3  # levels this close to the end of the range are in it
_MAX_CACHED_SPECTRA = 4
_MOST_TABLE_BYTES = 2**25  # of cached tables: some three hundred levels
_CHUNK_BYTES = {"cpu": 2**22}  # filter responses handled at once: on a CPU they shall stay near the cache
_GPU_CHUNK_BYTES = 2**28
_CACHES = threading.RLock()  # of all priors, which are copied, as a lock is not


class ProductPrior(torch.nn.Module):
    """A filter bank and its experts, ready to score images of any size.

    Parameters
    ----------
    bank, experts
        The two exchangeable parts.
    level_range
        (lowest, highest) noise level the model was trained on.
    name
        What to call it in results.
    """

    def __init__(
        self,
        bank: FilterBank,
        experts: Experts,
        level_range: tuple[float, float] = (0.005, 0.5),
        name: str = "unnamed",
    ) -> None:
        super().__init__()
        self.bank, self.experts = bank, experts
        self.level_range = level_range
        self.name = name
        self.sha256 = ""
        self._spectra: OrderedDict[tuple[object, ...], torch.Tensor] = OrderedDict()
        self._tables: OrderedDict[tuple[object, ...], ScoreTable] = OrderedDict()
        self._warned: set[str] = set()
        self._copies: dict[torch.device, ProductPrior] = {}

    def to(self, device: torch.device | str) -> ProductPrior:  # type: ignore[override]
        """Return the same on a device. This one stays where it is: a card may be lost, and its memory with it."""
        device = torch.device(device)
        if device == self.experts.width.device:
            return self
        if device not in self._copies:
            other = ProductPrior(copy.deepcopy(self.bank), copy.deepcopy(self.experts), self.level_range, self.name)
            other.sha256 = self.sha256
            torch.nn.Module.to(other, device)
            self._copies[device] = other
        return self._copies[device]

    @property
    def n_parameters(self) -> int:
        """Learned numbers."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def measure_widths(self) -> None:
        """Store each filter's L2 norm as its expert's width: the std of filtered unit white noise."""
        self.experts.width.copy_(filter_norms(self.bank.spectra(_WIDTH_GRID)))

    def forget_caches(self) -> None:
        """Drop cached spectra, tables and copies on other devices; needed after parameters changed."""
        self._spectra.clear()
        self._tables.clear()
        self._copies.clear()

    @torch.no_grad()
    def score(self, x: torch.Tensor, level: float) -> torch.Tensor:
        """Gradient of the log prior.

        Parameters
        ----------
        x
            Images, real or complex, `(..., y, x)`, image scale about 1.
        level
            Noise level, > 0. Outside `level_range` the model extrapolates, and says so once with a warning.

        Returns
        -------
            Same shape and dtype; complex images get score(Re) + i score(Im).
        """
        self._warn_outside(level)
        spectra, table = self._cached_spectra(x), self._cached_table(level, x.device, _real_dtype(x))
        images = x.reshape(-1, *x.shape[-2:])
        n_bytes = spectra[0].numel() * spectra.element_size()
        budget = _CHUNK_BYTES.get(x.device.type, _GPU_CHUNK_BYTES)
        parts = [
            _score_images(part, spectra, table, budget) for part in torch.split(images, max(1, budget // (4 * n_bytes)))
        ]
        return torch.cat(parts).reshape(x.shape)

    def denoise(self, y: torch.Tensor, level: float) -> torch.Tensor:
        """Expected clean image given a noisy one (Tweedie's formula); shapes as in `score`.

        Above `level_range` only the noise of the highest trained level is taken off, damped so that
        no frequency is turned over: the result is never worse than the input.
        """
        highest = self.level_range[1]
        if level <= highest:
            return y + level**2 * self.score(y, level)
        self._warn_outside(level)
        curvature = highest**2 * self.lipschitz_bound(highest, (y.shape[-2], y.shape[-1]))
        return y + highest**2 / max(1.0, curvature) * self.score(y, highest)

    @torch.no_grad()
    def energy(self, x: torch.Tensor, level: float) -> torch.Tensor:
        """-log prior up to a constant that depends on `level` only; `(...)` for `x` `(..., y, x)`."""
        spectra = self._cached_spectra(x)
        images = x.reshape(-1, *x.shape[-2:])
        parts = (images.real, images.imag) if images.is_complex() else (images,)
        power = self.experts.exponents(level)[:, None]
        total = torch.zeros(len(images), dtype=parts[0].dtype, device=x.device)
        for part in parts:
            for i, image in enumerate(part):
                u = torch.fft.ifft2(spectra.conj() * torch.fft.fft2(image, s=spectra.shape[-2:])).real
                total[i] -= (power * self.experts.log_psi(u.flatten(1), level)).sum()
        return total.reshape(x.shape[:-2])

    def training_score(self, y: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Score of real images `(batch, y, x)` at `(batch,)` levels, differentiable in all parameters."""
        ny, nx = y.shape[-2:]
        spectra = self.bank.spectra(_grid(y))
        u = torch.fft.ifft2(spectra.conj() * torch.fft.fft2(y, s=spectra.shape[-2:])[:, None]).real
        phi = self.experts.training_score(u.flatten(2), levels, filter_norms(spectra)).reshape(u.shape)
        found: torch.Tensor = torch.fft.ifft2((spectra * torch.fft.fft2(phi)).sum(1)).real[..., :ny, :nx]
        return found

    @torch.no_grad()
    def lipschitz_bound(self, level: float, shape: tuple[int, int]) -> float:
        """Upper bound of the curvature of the energy: max_w sum_k |K_k|^2 * curvature of expert k."""
        spectra = self._cached_spectra(torch.empty(shape, device=self.experts.width.device))
        curvature = self.experts.curvature_bound(level)
        return float((spectra.abs() ** 2 * curvature[:, None, None]).sum(0).max())

    def coverage(self, shape: tuple[int, int]) -> torch.Tensor:
        """G(w) = sum_k |K_k(w)|^2, `(ny, nx)`, DC at [0, 0]: where the prior sees anything at all."""
        return (self.bank.spectra(shape).detach().abs() ** 2).sum(0)

    def _warn_outside(self, level: float) -> None:
        """Warn, once per side, of a noise level the model was not trained on."""
        low, high = self.level_range
        side = "below" if level < low * (1 - _SAME) else "above" if level > high * (1 + _SAME) else ""
        if side and side not in self._warned:
            self._warned.add(side)
            trained = f"the range {low:g} to {high:g} that prior '{self.name}' was trained on"
            text = f"noise level {level:.3g} is {side} {trained}: it extrapolates."
            warnings.warn(text, UserWarning, stacklevel=4)  # past torch's wrapper of `score`, to its caller

    @torch.no_grad()
    def _cached_spectra(self, x: torch.Tensor) -> torch.Tensor:
        real = _real_dtype(x)
        key = (_grid(x), x.device, real)
        with _CACHES:
            if key not in self._spectra:
                spectra = self.bank.spectra(_grid(x)).to(x.device)
                self._spectra[key] = spectra.to(torch.complex128 if real == torch.float64 else torch.complex64)
                while len(self._spectra) > _MAX_CACHED_SPECTRA:
                    self._spectra.popitem(last=False)
            self._spectra.move_to_end(key)
            return self._spectra[key]

    def _cached_table(self, level: float, device: torch.device, dtype: torch.dtype) -> ScoreTable:
        key = (float(level), device, dtype)
        with _CACHES:
            if key not in self._tables:
                self._tables[key] = self.experts.table(float(level)).to(device, dtype)
                while len(self._tables) > 1 and sum(t.n_bytes for t in self._tables.values()) > _MOST_TABLE_BYTES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]


def _grid(x: torch.Tensor) -> tuple[int, int]:
    """Where images `(..., y, x)` are filtered; they lie at its beginning."""
    return padded_length(x.shape[-2]), padded_length(x.shape[-1])


def _real_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.empty(0, dtype=x.dtype).real.dtype


def filter_norms(spectra: torch.Tensor) -> torch.Tensor:
    """L2 norms of the kernels from spectra `(n_filters, n, m)`: sqrt(mean |K|^2), `(n_filters,)`."""
    return (spectra.abs() ** 2).mean(dim=(-2, -1)).sqrt()


def _score_images(images: torch.Tensor, spectra: torch.Tensor, table: ScoreTable, budget: int) -> torch.Tensor:
    """Score of `(n, y, x)`: filters in turn, as many as `budget` bytes hold the responses of."""
    ny, nx = images.shape[-2:]
    transform = torch.fft.fft2(images, s=spectra.shape[-2:])
    together = max(1, budget // (transform.numel() * transform.element_size()))
    total = torch.zeros_like(transform)
    for first in range(0, spectra.shape[0], together):
        part = slice(first, min(first + together, spectra.shape[0]))
        kernels = spectra[part, None]
        u = torch.fft.ifft2(kernels.conj() * transform)
        # real and imaginary parts are responses alike
        rows = torch.view_as_real(u) if images.is_complex() else u.real.contiguous()
        phi = table.multiply_(rows.view(u.shape[0], 1, -1), part).view(rows.shape)
        back = torch.fft.fft2(torch.view_as_complex(phi) if images.is_complex() else phi)
        for kernel, response in zip(kernels, back, strict=True):
            total.addcmul_(kernel, response)
    out = torch.fft.ifft2(total)[..., :ny, :nx]
    found: torch.Tensor = out if images.is_complex() else out.real
    return found
