"""The command `pogmdm`. One function adds each sub-command, one runs it; both import late.

To add a sub-command, write ``_add_NAME(commands)`` and ``_run_NAME(args) -> exit status`` and name the former
in `_COMMANDS`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    for add in _COMMANDS:
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
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


def _add_run(commands: Any) -> None:
    parser = _command(
        commands,
        "run",
        _run_run,
        "reconstruct an ISMRMRD scan offline, over the gadget's real wire protocol",
        "pogmdm run scan.h5 -o recon.h5 --preset fast --png previews",
    )
    parser.add_argument("source", metavar="IN", help="ISMRMRD .h5 file, ISMRMRD stream file, or - for stdin")
    parser.add_argument("-o", "--output", metavar="OUT.h5", required=True, type=Path, help="file to write")
    parser.add_argument("--preset", metavar="NAME", help="shipped preset (see: pogmdm configs list)")
    parser.add_argument("--settings", metavar="FILE.yaml", type=Path, help="settings file")
    parser.add_argument("-c", "--config", metavar="CONFIG.xml", help="Gadgetron chain: a path or a shipped name")
    _add_assignments(parser, "one setting, e.g. sampler.n_samples=4; wins over everything else; repeatable")
    parser.add_argument("--png", metavar="DIR", type=Path, help="also write a PNG of every series here")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one page with pictures and facts")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 and FILE when they exist")
    parser.add_argument("-g", "--group", default="dataset", help="group of the input (default: %(default)s)")
    parser.add_argument("-G", "--out-group", default="dataset", help="group of the output (default: %(default)s)")


def _run_run(args: argparse.Namespace) -> int:
    from gadget.progress import ProgressDisplay
    from gadget.replay.play import Job, replay

    job = Job(
        source=args.source,
        output=args.output,
        chain=args.config,
        properties=_given_settings(args),
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
    if args.png is not None:
        from gadget.report.preview import write_previews

        for picture in write_previews(args.output, args.png, job.out_group):
            display.log(str(picture))
    if args.html is not None:
        from gadget.report.page import write_report

        write_report(args.output, args.html, job.out_group, args.overwrite)
        display.log(str(args.html))
    return 0


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key.strip(), value


def _add_serve(commands: Any) -> None:
    parser = _command(
        commands,
        "serve",
        _run_serve,
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
        type=_count(0, 65535),
        default=18000,
        metavar="N",
        help="TCP port (default: %(default)s; 0: any free one)",
    )
    parser.add_argument(
        "--queue",
        type=_count(0, 1000),
        default=64,
        metavar="N",
        help="clients that may wait while scans are reconstructed, 0 to 1000; more are refused (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_count(1, 64),
        default=1,
        metavar="N",
        help="scans reconstructed at once, each in a process and on a graphics card of its own (default: %(default)s)",
    )
    parser.add_argument("--preset", metavar="NAME", help="preset of connections that bring none")
    parser.add_argument("--settings", metavar="FILE.yaml", type=Path, help="settings for what connections leave open")
    _add_assignments(parser, "a setting that connections may leave open, e.g. noise.whiten=upstream; repeatable")


def _run_serve(args: argparse.Namespace) -> int:
    from gadget.service.serve import serve_command

    defaults = dict(_given_settings(args))
    serve_command(args.host, args.port, args.queue, args.debug, defaults, args.workers)
    return 0


def _count(low: int, high: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number between two."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _add_assignments(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], type=_assignment, dest="assignments", help=text
    )


def _given_settings(args: argparse.Namespace) -> list[tuple[str, str]]:
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


def _add_phantom(commands: Any) -> None:
    parser = _command(
        commands,
        "phantom",
        _run_phantom,
        "write a simulated multi-coil scan of an analytic phantom",
        "pogmdm phantom phantom.h5 --matrix 256 --coils 8 --acceleration 4 --truth",
    )
    parser.add_argument("output", metavar="OUT.h5", type=Path, help="file to write")
    parser.add_argument(
        "--trajectory",
        default="cartesian",
        help="how k-space is sampled: cartesian, radial, spiral, gaussian2d (default: %(default)s)",
    )
    parser.add_argument(
        "--matrix", type=_matrix, default=(256, 256), metavar="N|NXxNY", help="image matrix (default: 256)"
    )
    parser.add_argument("--coils", type=int, default=8, metavar="C", help="receive coils (default: %(default)s)")
    parser.add_argument(
        "--acceleration", type=float, default=4, metavar="R", help="undersampling (default: %(default)s)"
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="spokes, interleaves or readouts off the grid (default: as R says)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.01,
        metavar="S",
        help="standard deviation of the noise in the real and imaginary part of a channel's pixel, relative to "
        "the image maximum (default: %(default)s)",
    )
    parser.add_argument("--slices", type=int, default=1, metavar="K", help="slices (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default: %(default)s)")
    parser.add_argument(
        "--truth", action="store_true", help="also write the noise-free fully sampled images, group truth"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 when it exists")


def _run_phantom(args: argparse.Namespace) -> int:
    from gadget.phantom.sampling import ScanPlan
    from gadget.phantom.write import write_phantom

    plan = ScanPlan(
        trajectory=args.trajectory,
        shape=args.matrix,
        n_coils=args.coils,
        acceleration=args.acceleration,
        noise=args.noise,
        n_slices=args.slices,
        seed=args.seed,
        shots=args.shots,
    )
    write_phantom(args.output, plan, args.truth, args.overwrite)
    return 0


def _matrix(text: str) -> tuple[int, int]:
    """``N`` or ``NXxNY`` to `(ny, nx)`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or NXxNY")
    return int(parts[-1]), int(parts[0])


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _run_train,
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


def _run_train(args: argparse.Namespace) -> int:
    from gadget.training.train import train_command

    train_command(args.images, args.output, args.settings, args.resume, args.overwrite)
    return 0


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        _run_inspect,
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


def _run_inspect(args: argparse.Namespace) -> int:
    from gadget.training.model_card import as_markdown, as_text, read_facts

    facts = read_facts(args.weights)
    if args.output is not None:
        from gadget.training.figure import default_figure, write_figure

        write_figure(facts, args.output if args.output.name else default_figure(facts), args.overwrite)
    sys.stdout.write(as_markdown(facts) if args.card else as_text(facts))
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _run_evaluate,
        "undersample full scans, reconstruct them with several methods and measure the images against the truth",
        "pogmdm evaluate full.h5 --patterns cartesian4,radial --methods zf,tv,pogmdm -o evaluation",
    )
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path, help="fully sampled Cartesian ISMRMRD files")
    parser.add_argument(
        "--patterns",
        type=_names,
        default=("cartesian4", "cartesian4h", "radial", "spiral", "gaussian8"),
        metavar="P,P",
        help="cartesian4 (8%% central lines), cartesian4_acs4 (4%%), cartesian4h (transposed), radial6 (or radial), "
        "radial11, spiral5 (or spiral), gaussian8 (default: %(default)s)",
    )
    parser.add_argument(
        "--methods",
        type=_names,
        default=("zf", "nlinv", "tv", "pogmdm"),
        metavar="M,M",
        help="zf, nlinv, tv, pogmdm, pogmdm:PRESET, and with BART on the PATH bart_nlinv, bart_ecalib, bart_pics_tv, "
        "bart_pics_wavelet, with sigpy installed sigpy_jsense_tv (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=_numbers, default=(0,), metavar="S,S", help="of masks and noise (default: 0)")
    parser.add_argument(
        "--truth",
        type=_names,
        default=("real",),
        metavar="T,T",
        help="real: the scan's own samples against the full scan; synthetic: noise-free coil combination with fresh "
        "noise, to judge the standard deviation; single: one ideal coil (default: real)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("evaluation"),
        help="folder for table.csv, report.html and the cache: a rerun computes what is missing (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("-g", "--group", default="dataset", help="group of the scans (default: %(default)s)")


def _run_evaluate(args: argparse.Namespace) -> int:
    from gadget.evaluate.run import Plan, evaluate
    from gadget.report.preview import make_folder

    make_folder(args.output)
    plan = Plan(
        scans=tuple(args.data),
        patterns=args.patterns,
        methods=args.methods,
        seeds=args.seeds,
        truths=args.truth,
        folder=args.output,
        jobs=args.jobs,
        group=args.group,
    )
    evaluate(plan)
    sys.stdout.write(f"{args.output / 'table.csv'}\n{args.output / 'report.html'}\n")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    names = _names(text)
    if not names or not all(name.isdigit() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, e.g. 0,1,2")
    return tuple(int(name) for name in names)


def _add_doctor(commands: Any) -> None:
    parser = _command(
        commands,
        "doctor",
        _run_doctor,
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time between 0 and 86400 s")
    return value


def _run_doctor(args: argparse.Namespace) -> int:
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


def _add_configs(commands: Any) -> None:
    parser = _command(
        commands,
        "configs",
        _run_configs,
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


def _run_configs(args: argparse.Namespace) -> int:
    from gadget.settings import configs

    if args.action == "list":
        for kind, found in (("chain", configs.chains()), ("preset", configs.presets())):
            for name, path in found.items():
                sys.stdout.write(f"{kind:7} {name:24} {path}\n")
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


_COMMANDS = (_add_run, _add_serve, _add_phantom, _add_train, _add_inspect, _add_evaluate, _add_doctor, _add_configs)
