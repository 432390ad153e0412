"""`pogmdm evaluate`: methods against the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gadget.cli.arguments import Commands, command, names


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "evaluate",
        _run,
        "undersample full scans, reconstruct them with several methods and measure the images against the truth",
        "pogmdm evaluate full.h5 --patterns cartesian4,radial --methods zf,tv,pogmdm -o evaluation",
    )
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path, help="fully sampled Cartesian ISMRMRD files")
    parser.add_argument(
        "--patterns",
        type=names,
        default=("cartesian4", "cartesian4h", "radial", "spiral", "gaussian8"),
        metavar="P,P",
        help="cartesian4 (8%% central lines), cartesian4_acs4 (4%%), cartesian4h (transposed), radial6 (or radial), "
        "radial11, spiral5 (or spiral), gaussian8 (default: cartesian4, cartesian4h, radial, spiral, gaussian8)",
    )
    parser.add_argument(
        "--methods",
        type=names,
        default=("zf", "nlinv", "tv", "pogmdm"),
        metavar="M,M",
        help="zf, nlinv, tv, pogmdm, pogmdm:PRESET, and with BART on the PATH bart_nlinv, bart_ecalib, bart_pics_tv, "
        "bart_pics_wavelet, with sigpy installed sigpy_jsense_tv (default: zf, nlinv, tv, pogmdm)",
    )
    parser.add_argument("--seeds", type=_numbers, default=(0,), metavar="S,S", help="of masks and noise (default: 0)")
    parser.add_argument(
        "--truth",
        type=names,
        default=("real",),
        metavar="T,T",
        help="real: the scan's own samples against the full scan; synthetic: noise-free coil combination with fresh "
        "noise, to judge the standard deviation; single: one ideal coil (default: real)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("evaluation"),
        help="folder for table.csv, report.html and the cache: a rerun computes what is missing (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("-g", "--group", default="dataset", help="group of the scans (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    from gadget.evaluate.plan import Plan
    from gadget.evaluate.run import evaluate
    from gadget.report.preview import make_folder

    make_folder(args.output)
    plan = Plan(
        scans=tuple(args.data),
        patterns=args.patterns,
        methods=args.methods,
        seeds=args.seeds,
        truths=args.truth,
        folder=args.output,
        jobs=args.jobs,
        group=args.group,
    )
    evaluate(plan)
    sys.stdout.write(f"{args.output / 'table.csv'}\n{args.output / 'report.html'}\n")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    found = names(text)
    if not found or not all(name.isdigit() for name in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, e.g. 0,1,2")
    return tuple(int(name) for name in found)
