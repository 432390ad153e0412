"""`pogmdm bench`: how fast it is on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gadget.cli.arguments import Commands, command, names, whole_number

_SCANS = ("cartesian320", "cartesian640", "radial320")
_PRESETS = ("image", "fast", "default")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "bench",
        _run,
        "time the pieces of a reconstruction, whole presets, and BART's nlinv when installed",
        "pogmdm bench --scans cartesian320 --json bench.json",
    )
    parser.add_argument("--device", default="cpu", metavar="D", help="cpu or cuda[:n] (default: %(default)s)")
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), default=1, metavar="N", help="on a CPU (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    for name, choices in (("scans", _SCANS), ("presets", _PRESETS)):
        parser.add_argument(
            f"--{name}",
            type=partial(_known_names, choices),
            default=choices,
            metavar="LIST",
            help=f"of {', '.join(choices)} (default: all)",
        )
    parser.add_argument("--no-peers", action="store_true", help="leave BART out")


def _known_names(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    found = names(text)
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name[:40]!r} is none of {', '.join(known)}")
    return found


def _run(args: argparse.Namespace) -> int:
    import torch

    from gadget.bench.measure import measure
    from gadget.bench.scans import SCANS
    from pogmdm_core.reconstruction import choose_device

    device = choose_device(args.device)
    torch.set_num_threads(args.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {args.threads} threads"
    sys.stdout.write(f"{name}, torch {torch.__version__}\n")
    found = []
    for scan in args.scans:
        for timing in measure(SCANS[scan], args.presets, str(device), not args.no_peers):
            found.append(asdict(timing))
            psnr = "" if timing.psnr_db is None else f"{timing.psnr_db:6.2f} dB"
            figures = f"{timing.wall_s:10.4f} s {timing.cpu_s:10.4f} CPU s {psnr:9}"
            sys.stdout.write(f"{timing.scan:24} {timing.what:40} {figures}  {timing.note}\n")
            sys.stdout.flush()
    if args.json is not None:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "timings": found}, indent=1))
    return 0
