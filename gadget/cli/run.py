"""`pogmdm run`: reconstruct a scan offline."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from gadget.cli.arguments import Commands, add_assignments, command, given_settings


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "run",
        _run,
        "reconstruct an ISMRMRD scan offline, over the gadget's real wire protocol",
        "pogmdm run scan.h5 -o recon.h5 --preset fast --png previews",
    )
    parser.add_argument("source", metavar="IN", help="ISMRMRD .h5 file, ISMRMRD stream file, or - for stdin")
    parser.add_argument("-o", "--output", metavar="OUT.h5", required=True, type=Path, help="file to write")
    parser.add_argument("--preset", metavar="NAME", help="shipped preset (see: pogmdm configs list)")
    parser.add_argument("--settings", metavar="FILE.yaml", type=Path, help="settings file")
    parser.add_argument("-c", "--config", metavar="CONFIG.xml", help="Gadgetron chain: a path or a shipped name")
    add_assignments(parser, "one setting, e.g. sampler.n_samples=4; wins over everything else; repeatable")
    parser.add_argument("--png", metavar="DIR", type=Path, help="also write a PNG of every series here")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one page with pictures and facts")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 and FILE when they exist")
    parser.add_argument("-g", "--group", default="dataset", help="group of the input (default: %(default)s)")
    parser.add_argument("-G", "--out-group", default="dataset", help="group of the output (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    from gadget.progress import ProgressDisplay
    from gadget.replay.play import Job, replay

    job = Job(
        source=args.source,
        output=args.output,
        chain=args.config,
        properties=given_settings(args),
        group=args.group,
        out_group=args.out_group.strip("/"),
        overwrite=args.overwrite,
    )
    if args.png is not None:
        from gadget.report.preview import make_folder

        make_folder(args.png)  # before the work that would be lost
    if args.html is not None:
        from gadget.files.atomic import refuse_existing

        refuse_existing(args.html, args.overwrite)
    display = ProgressDisplay()
    outcome = replay(job, display, args.debug)
    series = ", ".join(f"image_{number} x {count}" for number, count in outcome.series.items())
    display.log(f"{args.output}: {series} ({outcome.seconds:.1f} s)")
    if args.png is not None or args.html is not None:
        for path in _drawn(args, job.out_group):
            display.log(str(path))
    if outcome.failure is not None:
        raise outcome.failure
    return 0


def _drawn(args: argparse.Namespace, group: str) -> Iterator[Path]:
    """Draw the series once, and write what was asked for: PNGs, a page."""
    from gadget.report.preview import draw_previews, write_previews

    pictures = draw_previews(args.output, group)
    if args.png is not None:
        yield from write_previews(pictures, args.png)
    if args.html is not None:
        from gadget.report.page import write_report

        write_report(args.output, pictures, args.html, group, args.overwrite)
        yield args.html
