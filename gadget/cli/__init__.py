"""The command `pogmdm`."""

from gadget.cli.command_line import main

__all__ = ["main"]
