"""`pogmdm train`: a prior of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

from gadget.cli.arguments import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "train",
        _run,
        "train a prior on images of your own",
        "pogmdm train images/ more.zip -o my_prior.safetensors",
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        type=Path,
        help="PNG, JPEG, NIfTI, DICOM, NPY, NPZ files, ISMRMRD .h5 files of images, and folders or zips of them",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="WEIGHTS.safetensors",
        required=True,
        type=Path,
        help="weights to write; the model card WEIGHTS.md is written beside them",
    )
    parser.add_argument("--settings", metavar="FILE.yaml", type=Path, help="sections: training, sources")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside the output")
    parser.add_argument("--overwrite", action="store_true", help="replace the output and its card when they exist")


def _run(args: argparse.Namespace) -> int:
    from gadget.training.train import train_command

    train_command(args.images, args.output, args.settings, args.resume, args.overwrite)
    return 0
