"""What a reconstruction costs beside other busy programs, by how its threads wait for each other.

    python benchmarks/busy_machine.py [--matrix 128] [--busy 0,1,2] [--rounds 3]

torch computes with OpenMP, whose threads (libgomp) spin while they wait: 300 000 turns unless told otherwise. Where
another program has the processor of a thread that is waited for, the others spin in vain. `gadget` sets
GOMP_SPINCOUNT=1000. Wall seconds, median and range over rounds in turn; a process each, for the library reads it once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

_RECONSTRUCT = """
import sys, time, torch
from pogmdm_core import KSpaceFrame, Settings, load_prior, reconstruct
from pogmdm_core.measurement.phantom import Phantom
n = int(sys.argv[1])
image = Phantom.head(8, 0, 1.0).truth((n, n)).to(torch.complex64)
kspace = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho")).expand(8, n, n).contiguous()
mask = torch.zeros(n, n, dtype=torch.bool)
mask[::3], mask[n // 2 - 8 : n // 2 + 8] = True, True
settings = Settings(n_samples=0, map={"steps": 60}, uncertainty={"method": "off"}, device="cpu")
start = time.monotonic()
reconstruct(KSpaceFrame.cartesian(kspace * mask, mask, 0.01), load_prior(), settings)
print(time.monotonic() - start)
"""
_WAITING = {"libgomp's own": {}, "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"}, "passive": {"GOMP_SPINCOUNT": "0"}}


def main() -> None:
    """Print one row per number of busy programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=int, default=128)
    parser.add_argument("--busy", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    sys.stdout.write(f"{os.cpu_count()} processors, {args.matrix}x{args.matrix}, 8 coils\n\n")
    sys.stdout.write(f"| busy programs | {' | '.join(_WAITING)} |\n|---|{'---|' * len(_WAITING)}\n")
    for n_busy in (int(n) for n in args.busy.split(",")):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            seconds: dict[str, list[float]] = {name: [] for name in _WAITING}
            for _ in range(args.rounds):
                for name, variables in _WAITING.items():
                    command = [sys.executable, "-c", _RECONSTRUCT, str(args.matrix)]
                    done = subprocess.run(
                        command, env={**clean, **variables}, capture_output=True, text=True, check=True
                    )
                    seconds[name].append(float(done.stdout))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        cells = (f"{statistics.median(s):.1f} ({min(s):.1f} to {max(s):.1f})" for s in seconds.values())
        sys.stdout.write(f"| {n_busy} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
