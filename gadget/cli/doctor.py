"""`pogmdm doctor`: what is installed and whether it works."""

from __future__ import annotations

import argparse
import sys

from gadget.cli.arguments import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "doctor",
        _run,
        "show versions, device, paths and weights, and run a self-test; or examine a running Gadgetron",
        "pogmdm doctor --server localhost:9002",
    )
    parser.add_argument(
        "--server",
        metavar="HOST[:PORT]",
        help="instead of this installation, examine the Gadgetron there (default port: 9002): its version, an echo, "
        "and a tiny reconstruction with every shipped chain",
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=180.0, metavar="S", help="limit for one chain, s (default: %(default)g)"
    )


def _run(args: argparse.Namespace) -> int:
    from gadget.doctor.installation import examine

    if args.server is None:
        findings, width = examine(), 14
    else:
        from gadget.doctor.server import examine_server
        from gadget.replay.gadgetron_client import address_from

        findings, width = examine_server(address_from(args.server), args.timeout), 28
    healthy = True
    for what, value, good in findings:
        sys.stdout.write(f"{'  ' if good else '! '}{what:{width}} {value}\n")
        sys.stdout.flush()
        healthy = healthy and good
    return 0 if healthy else 5


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time between 0 and 86400 s")
    return value
