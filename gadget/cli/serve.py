"""`pogmdm serve`: the gadget as a service."""

from __future__ import annotations

import argparse
from pathlib import Path

from gadget.cli.arguments import Commands, add_assignments, command, given_settings, whole_number


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "serve",
        _run,
        "run as a service for Gadgetron's <connect>, FIRE and OpenRecon clients",
        "pogmdm serve --port 9002 --preset fast",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only; :: is all IPv4 and IPv6)",
    )
    parser.add_argument(
        "--port",
        type=whole_number(0, 65535),
        default=18000,
        metavar="N",
        help="TCP port (default: %(default)s; 0: any free one)",
    )
    parser.add_argument(
        "--queue",
        type=whole_number(0, 1000),
        default=64,
        metavar="N",
        help="clients that may wait while scans are reconstructed, 0 to 1000; more are refused (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1, 64),
        default=1,
        metavar="N",
        help="scans reconstructed at once, each in a process and on a graphics card of its own (default: %(default)s)",
    )
    parser.add_argument("--preset", metavar="NAME", help="preset of connections that bring none")
    parser.add_argument("--settings", metavar="FILE.yaml", type=Path, help="settings for what connections leave open")
    add_assignments(parser, "a setting that connections may leave open, e.g. noise.whiten=upstream; repeatable")


def _run(args: argparse.Namespace) -> int:
    from gadget.service.serve import serve_command

    defaults = dict(given_settings(args))
    serve_command(args.host, args.port, args.queue, args.debug, defaults, args.workers)
    return 0
