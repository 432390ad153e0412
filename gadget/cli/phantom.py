"""`pogmdm phantom`: a simulated scan."""

from __future__ import annotations

import argparse
from pathlib import Path

from gadget.cli.arguments import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "phantom",
        _run,
        "write a simulated multi-coil scan of an analytic phantom",
        "pogmdm phantom phantom.h5 --matrix 256 --coils 8 --acceleration 4 --truth",
    )
    parser.add_argument("output", metavar="OUT.h5", type=Path, help="file to write")
    parser.add_argument(
        "--trajectory",
        default="cartesian",
        help="how k-space is sampled: cartesian, radial, spiral, gaussian2d (default: %(default)s)",
    )
    parser.add_argument(
        "--matrix", type=_matrix, default=(256, 256), metavar="N|NXxNY", help="image matrix (default: 256)"
    )
    parser.add_argument("--coils", type=int, default=8, metavar="C", help="receive coils (default: %(default)s)")
    parser.add_argument(
        "--acceleration", type=float, default=4, metavar="R", help="undersampling (default: %(default)s)"
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="spokes, interleaves or readouts off the grid (default: as R says)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.01,
        metavar="S",
        help="standard deviation of the noise in the real and imaginary part of a channel's pixel, relative to "
        "the image maximum (default: %(default)s)",
    )
    parser.add_argument("--slices", type=int, default=1, metavar="K", help="slices (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default: %(default)s)")
    parser.add_argument(
        "--truth", action="store_true", help="also write the noise-free fully sampled images, group truth"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 when it exists")


def _run(args: argparse.Namespace) -> int:
    from gadget.phantom.sampling import ScanPlan
    from gadget.phantom.write import write_phantom

    plan = ScanPlan(
        trajectory=args.trajectory,
        shape=args.matrix,
        n_coils=args.coils,
        acceleration=args.acceleration,
        noise=args.noise,
        n_slices=args.slices,
        seed=args.seed,
        shots=args.shots,
    )
    write_phantom(args.output, plan, args.truth, args.overwrite)
    return 0


def _matrix(text: str) -> tuple[int, int]:
    """``N`` or ``NXxNY`` to `(ny, nx)`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or NXxNY")
    return int(parts[-1]), int(parts[0])
