"""Time of the encoding against the number of samples: it must not grow.

    python benchmarks/encoding.py [--matrix 320] [--coils 8] [--threads 1]

Radial scans of 1x, 4x and 16x as many spokes: milliseconds per application of the normal operator to all coils
and per iteration of the MAP estimate (medians), beside the Cartesian operators and the same product by a forward
and an adjoint non-uniform transform, which do grow. Setting up (kernel, adjoint data) is once per frame.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from pogmdm_core import KSpaceFrame, load_prior
from pogmdm_core.estimate.map_estimate import map_estimate
from pogmdm_core.measurement.encoding import EncodingModel
from pogmdm_core.measurement.noncartesian import NonCartesianFourier
from pogmdm_core.measurement.trajectories import gaussian2d, radial

_SPOKES = 20


def median_ms(work: Callable[[], object], repeats: int = 7) -> float:
    """Median wall time of `work`, milliseconds, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def measure(name: str, frame: KSpaceFrame) -> None:
    begin = time.perf_counter()
    model = EncodingModel(frame)
    fourier = model.fourier
    n_coils, ny, nx = model.adjoint_data.shape
    x = torch.randn(n_coils, ny, nx, dtype=torch.complex64)
    fourier.normal(x)
    set_up = time.perf_counter() - begin
    normal = median_ms(lambda: fourier.normal(x))
    pair = "-"
    if isinstance(fourier, NonCartesianFourier):
        pair = f"{median_ms(lambda: fourier.adjoint(fourier.forward(x)), 3):.0f}"
    csm = torch.full((n_coils, ny, nx), n_coils**-0.5, dtype=torch.complex64)
    stamps: list[float] = []
    map_estimate(
        model, load_prior(), csm, csm[0], 0.01, 0.015, 12, 0.0, report=lambda *_: stamps.append(time.perf_counter())
    )
    steps = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    step = 1e3 * statistics.median(steps)
    sys.stdout.write(f"| {name} | {fourier.n_samples} | {set_up:.2f} | {normal:.0f} | {pair} | {step:.0f} |\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=int, default=320)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.matrix, args.matrix)
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(args.coils, *size, dtype=torch.complex64, generator=generator)

    sys.stdout.write("| sampling | samples | set-up s | normal ms | forward + adjoint ms | MAP iteration ms |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for factor in (1, 4, 16):
        k, _ = radial(factor * _SPOKES, shape)
        measure(f"radial, {factor * _SPOKES} spokes", KSpaceFrame.noncartesian(noise(k.shape[1]), k, shape))
    mask = gaussian2d(shape, 8, generator)
    measure("Cartesian points", KSpaceFrame.cartesian(noise(*shape), mask))
    lines = torch.zeros(shape, dtype=torch.bool)
    lines[::4] = True
    measure("Cartesian lines", KSpaceFrame.cartesian(noise(*shape), lines))


if __name__ == "__main__":
    main()
