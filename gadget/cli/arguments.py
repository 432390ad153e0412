"""What the sub-commands share: how one is added, and settings on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a sub-command with what all of them share."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug logs")
    parser.set_defaults(run=run)
    return parser


def add_assignments(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--set KEY=VALUE``; `text` is its help."""
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], type=_assignment, dest="assignments", help=text
    )


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value


def given_settings(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Names and values from ``--preset``, ``--settings`` and ``--set``; the gadget takes files by their full path."""
    found = [
        (k, str(Path(v).resolve()) if k == "dump" or (k == "prior" and Path(v).is_file()) else v)
        for k, v in args.assignments
    ]
    if args.settings is not None:
        found.insert(0, ("settings", str(args.settings.resolve())))
    if args.preset is not None:
        found.insert(0, ("preset", args.preset))
    return found


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number between two."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def names(text: str) -> tuple[str, ...]:
    """Type of an argument that is a list: what stands between its commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
