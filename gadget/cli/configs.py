"""`pogmdm configs`: shipped chains and presets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gadget.cli.arguments import Commands, command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = command(
        commands,
        "configs",
        _run,
        "list, show or install the shipped Gadgetron chains and presets",
        "pogmdm configs install $GADGETRON_HOME/share/gadgetron/config",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    actions.add_parser("list", help="names and places of all chains and presets")
    show = actions.add_parser("show", help="print a chain or preset, or all settings with --schema")
    show.add_argument("name", metavar="NAME", nargs="?", help="as listed")
    show.add_argument("--schema", action="store_true", help="print the JSON schema of all settings")
    install = actions.add_parser("install", help="copy the chains to a folder")
    install.add_argument("folder", metavar="DIR", type=Path)
    install.add_argument("--overwrite", action="store_true", help="replace files that differ")


def _run(args: argparse.Namespace) -> int:
    from gadget.settings import configs

    if args.action == "list":
        for kind, found in (("chain", configs.chains()), ("preset", configs.presets())):
            for name, path in found.items():
                sys.stdout.write(f"{kind:7} {name:28} {path}\n")
    elif args.action == "install":
        for path in configs.install(args.folder, args.overwrite):
            sys.stdout.write(f"{path}\n")
    elif args.schema:
        sys.stdout.write(_schema())
    elif args.name:
        sys.stdout.write(configs.text_of(args.name))
    else:
        from pogmdm_core.errors import ConfigError

        raise ConfigError(109, "configs show needs a NAME or --schema.", "See: pogmdm configs list")
    return 0


def _schema() -> str:
    import json

    from gadget.settings.schema import GadgetSettings

    return json.dumps(GadgetSettings.model_json_schema(), indent=2) + "\n"
