"""The convserve command: its parser, and its exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence

from convserve import __version__
from convserve.cli import (
    bench,
    cache,
    calibrate,
    classify,
    demo,
    describe,
    import_net,
    info,
    plan,
    score_map,
    serve,
    verify,
)
from convserve.errors import ConvserveError, PatternError

__all__ = ["main"]

_COMMANDS = (serve, classify, score_map, import_net, describe, plan, verify, bench, calibrate, cache, info, demo)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convserve",
        description="ConvNet inference and dense score maps on CPUs, in the memory you set.",
        epilog="Exit codes: 0 done; 1 an error, told in one line on stderr; 2 wrong usage; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"convserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.register(commands)
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    # argparse takes a list of files as ended where an option follows; here files may stand before and behind options
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "images") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.images = [*args.images, *rest]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (default: of sys.argv) and return its exit code: 0 done, 1 an error, 130 interrupted.

    Wrong usage ends the process with 2, as argparse does.
    """
    args = _parsed(argv)
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except PatternError as error:
        # its last line points at a place in the line above
        print(f"convserve: {error}", file=sys.stderr)
        return 1
    except ConvserveError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # whoever read the output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130


def _failed(text: str) -> int:
    print("convserve: " + " ".join(text.split()), file=sys.stderr)
    return 1
