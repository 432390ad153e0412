"""`pogmdm inspect`: what a prior is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gadget.cli.arguments import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "inspect",
        _run,
        "show what a prior is: training record, filters, potentials, coverage",
        "pogmdm inspect default -o default.png",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="shipped name (default, paper, ...) or .safetensors file")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FIGURE.png",
        type=Path,
        nargs="?",
        const=Path(),
        help="also draw filters, potentials and coverage; without FIGURE.png: NAME.png, NAME the model's. "
        "Without -o nothing is written",
    )
    parser.add_argument("--card", action="store_true", help="print the Markdown model card instead of plain text")
    parser.add_argument("--overwrite", action="store_true", help="replace the figure when it exists")


def _run(args: argparse.Namespace) -> int:
    from gadget.training.model_card import as_markdown, as_text, read_facts

    facts = read_facts(args.weights)
    if args.output is not None:
        from gadget.training.figure import default_figure, write_figure

        write_figure(facts, args.output if args.output.name else default_figure(facts), args.overwrite)
    sys.stdout.write(as_markdown(facts) if args.card else as_text(facts))
    return 0
