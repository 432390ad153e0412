"""The command `pogmdm`: each sub-command is a file beside this one, which imports late what it runs.

To add one, write ``add(commands)`` in a file of its own (`gadget.cli.arguments.command` does what all share) and name
it in `_COMMANDS`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gadget.cli import bench, configs, doctor, evaluate, inspect, phantom, run, serve, train

_COMMANDS = (run, serve, phantom, train, inspect, evaluate, bench, doctor, configs)
_EPILOG = """exit status: 0 ok, 2 usage or settings, 3 input, 4 transport, 5 computing, 6 output.
Research use only, not for diagnostic use."""
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) went away: no error, and no traceback at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the one place where the command line reports errors
        if args.debug:
            raise
        sys.stderr.write(_one_line(error) + "\n")
        return int(getattr(error, "exit_code", 5))


def _one_line(error: Exception) -> str:
    from pogmdm_core.errors import PogmdmError

    if isinstance(error, PogmdmError):
        return " ".join(str(error).split())
    return f"E599 unexpected {type(error).__name__}. Repeat with --debug, and report it."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pogmdm",
        description="Joint image and coil reconstruction with a pixel-wise uncertainty map, for ISMRMRD data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser
