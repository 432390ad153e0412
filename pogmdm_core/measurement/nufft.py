"""Non-uniform Fourier sums, the two directions only: pixels to samples and back.

`forward`: y_j = sum_p x_p exp(-2 pi i k_j.p / N) / sqrt(ny nx), pixel n // 2 at 0; `adjoint` is its adjoint.
finufft computes them on a CPU, cufinufft on a GPU, each when installed; else `GriddingNufft` in torch.
They are needed a few times per reconstruction only (iterations use the Toeplitz form), so all work in
double precision: single precision coordinates alone would cost 1e-5.

Source: Fessler & Sutton 2003, doi:10.1109/TSP.2002.807005; Beatty, Nishimura & Pauly 2005,
doi:10.1109/TMI.2004.841938 (kernel width and shape); Barnett, Magland & af Klinteberg 2019,
doi:10.1137/18M120885X (finufft).
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any, Protocol

import torch

from pogmdm_core.lengths import good_length

_BATCH = 16  # images per plan: bounds the memory of the oversampled grids
_MOST_PLANS = 4
_TOLERANCE = {torch.complex64: 1e-6, torch.complex128: 1e-12}
_WIDTH = {torch.complex64: 7, torch.complex128: 14}  # grid points; errors of 2e-7 and 3e-14


class Nufft(Protocol):
    """What every backend offers; batches lead."""

    name: str

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(batch, y, x)` to samples `(batch, n)`, same dtype."""
        ...

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples `(batch, n)` to images `(batch, y, x)`, same dtype."""
        ...


def make_nufft(trajectory: torch.Tensor, shape: tuple[int, int], backend: str = "auto") -> Nufft:
    """Choose a backend.

    Parameters
    ----------
    trajectory
        `(2, n)` float64, rows kx and ky, cycles per `shape`, finite.
    shape
        `(ny, nx)`.
    backend
        ``"auto"``: the library for the trajectory's device when installed, else ``"torch"``.
        ``"finufft"``, ``"cufinufft"`` or ``"torch"`` to insist.
    """
    if backend == "auto":
        library = {"cpu": "finufft", "cuda": "cufinufft"}.get(trajectory.device.type, "")
        backend = library if library and importlib.util.find_spec(library) is not None else "torch"
    if backend == "torch":
        return GriddingNufft(trajectory, shape)
    return LibraryNufft(trajectory, shape, backend)


def lag_nufft(trajectory: torch.Tensor, shape: tuple[int, int], backend: str = "auto") -> Nufft:
    """Transform from differences of pixel positions, `(2 ny - 1, 2 nx - 1)`, lag 0 in the middle, to the samples."""
    doubled = (2 * shape[0] - 1, 2 * shape[1] - 1)
    stretch = [[doubled[1] / shape[1]], [doubled[0] / shape[0]]]  # cycles per pixel stay what they are
    return make_nufft(trajectory * torch.tensor(stretch, dtype=torch.float64).to(trajectory.device), doubled, backend)


def triangle(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Share of pixel pairs at each lag, `(2 ny - 1, 2 nx - 1)` float64: the field of view's autocorrelation."""
    fade_y, fade_x = (1 - torch.arange(1 - n, n, device=device, dtype=torch.float64).abs() / n for n in shape)
    return fade_y[:, None] * fade_x


class LibraryNufft:
    """finufft or cufinufft, with plans that are kept: setting points costs more than one transform.

    Parameters
    ----------
    trajectory, shape
        See `make_nufft`.
    library
        ``"finufft"`` or ``"cufinufft"``.
    """

    def __init__(self, trajectory: torch.Tensor, shape: tuple[int, int], library: str) -> None:
        self.name = library
        self._library = importlib.import_module(library)  # after torch: both bring an OpenMP runtime
        self._shape = shape
        self._scale = 1 / math.sqrt(shape[0] * shape[1])
        self._on_cpu, self._gpu = library == "finufft", trajectory.device.index or 0
        self._n_samples = int(trajectory.shape[1])
        angles = [2 * math.pi * (trajectory[1] / shape[0]), 2 * math.pi * (trajectory[0] / shape[1])]
        # both libraries want angles within one period
        self._angles = [self._native(torch.remainder(a + math.pi, 2 * math.pi) - math.pi) for a in angles]
        self._plans: dict[tuple[int, int, float], Any] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See `Nufft`."""
        return self._run(2, images, (self._n_samples,))

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """See `Nufft`."""
        return self._run(1, samples, self._shape)

    def _run(self, kind: int, data: torch.Tensor, result: tuple[int, ...]) -> torch.Tensor:
        parts = []
        for part in torch.split(data, _BATCH):
            key = (kind, len(part), _TOLERANCE[data.dtype])
            if key not in self._plans:
                if len(self._plans) == _MOST_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = self._make_plan(*key)
            plan = self._plans[key]
            found = torch.empty((len(part), *result), dtype=torch.complex128, device=data.device)
            plan.execute(self._native(part.to(torch.complex128)), out=self._native(found))
            parts.append(found)
        return torch.cat(parts).to(data.dtype) * self._scale

    def _make_plan(self, kind: int, n_batch: int, tolerance: float) -> Any:
        device = {"nthreads": torch.get_num_threads()} if self._on_cpu else {"gpu_device_id": self._gpu}
        plan = self._library.Plan(
            kind, self._shape, n_batch, tolerance, 1 if kind == 1 else -1, dtype="complex128", **device
        )
        plan.setpts(*self._angles)
        return plan

    def _native(self, array: torch.Tensor) -> Any:
        array = array.contiguous().resolve_conj()
        return array.numpy() if self._on_cpu else array


class GriddingNufft:
    """Kaiser-Bessel gridding on a grid of twice the size, in torch.

    Parameters
    ----------
    trajectory, shape
        See `make_nufft`.
    """

    name = "torch"

    def __init__(self, trajectory: torch.Tensor, shape: tuple[int, int]) -> None:
        self._trajectory, self._shape = trajectory, shape
        self._made_axes: dict[torch.dtype, tuple[_Axis, _Axis]] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See `Nufft`."""
        rows, columns = self._axes(images.dtype)
        padded = images.new_zeros(len(images), rows.grid, columns.grid)
        padded[:, rows.pixels[:, None], columns.pixels] = images * (rows.roll_off[:, None] * columns.roll_off)
        grid = torch.fft.fft2(padded).reshape(len(images), -1)
        out = images.new_zeros(len(images), self._trajectory.shape[1])
        for index, weight in _taps(rows, columns):
            out += grid[:, index] * weight
        return out / math.sqrt(self._shape[0] * self._shape[1])

    def adjoint(self, samples: torch.Tensor) -> torch.Tensor:
        """See `Nufft`."""
        rows, columns = self._axes(samples.dtype)
        grid = samples.new_zeros(len(samples), rows.grid * columns.grid)
        for index, weight in _taps(rows, columns):
            grid.index_add_(1, index, samples * weight)
        padded = torch.fft.ifft2(grid.reshape(len(samples), rows.grid, columns.grid), norm="forward")
        images = padded[:, rows.pixels[:, None], columns.pixels] * (rows.roll_off[:, None] * columns.roll_off)
        found: torch.Tensor = images / math.sqrt(self._shape[0] * self._shape[1])
        return found

    def _axes(self, dtype: torch.dtype) -> tuple[_Axis, _Axis]:
        if dtype not in self._made_axes:
            kx, ky = self._trajectory
            self._made_axes[dtype] = _Axis(ky, self._shape[0], dtype), _Axis(kx, self._shape[1], dtype)
        return self._made_axes[dtype]


class _Axis:
    """Kernel weights along one axis.

    Attributes
    ----------
    grid
        Length of the oversampled grid.
    pixels
        Where the image's pixels lie on it (position modulo the length), int64 `(n_pixels,)`.
    roll_off
        What the pixels are multiplied with to undo the kernel's apodisation, `(n_pixels,)`.
    index, weight
        Grid points around each sample and their weights, `(width, n)`.
    """

    def __init__(self, k: torch.Tensor, n: int, dtype: torch.dtype) -> None:
        width, real = _WIDTH[dtype], dtype.to_real()
        self.grid = good_length(max(2 * n, width))
        ratio = self.grid / n
        beta = math.pi * math.sqrt((width / ratio) ** 2 * (ratio - 0.5) ** 2 - 0.8)
        position = torch.arange(n, device=k.device) - n // 2
        self.pixels = position % self.grid
        argument = (beta**2 - (math.pi * width * position.double() / self.grid) ** 2).sqrt()
        top = torch.special.i0(torch.tensor(beta, dtype=torch.float64, device=k.device))
        self.roll_off = (argument * top / (width * argument.sinh())).to(real)
        place = k * ratio
        first = torch.ceil(place - width / 2)
        tap = torch.arange(width, device=k.device)[:, None]
        distance = (2 / width) * (first + tap - place)
        self.weight = (torch.special.i0(beta * (1 - distance**2).clamp_min(0).sqrt()) / top).to(real)
        self.index = (first.long() + tap) % self.grid


def _taps(rows: _Axis, columns: _Axis) -> Any:
    """Flat grid index and weight `(n,)` of every kernel tap."""
    for row_index, row_weight in zip(rows.index, rows.weight, strict=True):
        for column_index, column_weight in zip(columns.index, columns.weight, strict=True):
            yield row_index * columns.grid + column_index, row_weight * column_weight
