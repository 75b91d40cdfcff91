"""The convserve command: its parser, and its exit codes."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from convserve import __version__
from convserve.errors import ConvserveError, PatternError

__all__ = ["main"]

# each command and the module of it; one that is asked for is imported alone, since others need more than it does
_COMMANDS = {
    "serve": "serve",
    "health": "health",
    "classify": "classify",
    "score-map": "score_map",
    "import": "import_net",
    "describe": "describe",
    "plan": "plan",
    "verify": "verify",
    "bench": "bench",
    "calibrate": "calibrate",
    "cache": "cache",
    "info": "info",
    "demo": "demo",
}


def _parser(wanted: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convserve",
        description="ConvNet inference and dense score maps on CPUs, in the memory you set.",
        epilog="Exit codes: 0 done; 1 an error, told in one line on stderr; 2 wrong usage; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"convserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in wanted:
        import_module(f"convserve.cli.{_COMMANDS[command]}").register(commands)
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    # argparse takes a list of files as ended where an option follows; here files may stand before and behind options
    texts = sys.argv[1:] if argv is None else argv
    parser = _parser(texts[:1] if texts and texts[0] in _COMMANDS else _COMMANDS)
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "images") or any(text.startswith("-") for text in rest)):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}{_nearest(rest, args.parser)}")
    if rest:
        args.images = [*args.images, *rest]
    return args


def _nearest(rest: Sequence[str], parser: argparse.ArgumentParser) -> str:
    from difflib import get_close_matches

    flags = [text.partition("=")[0] for text in rest if text.startswith("--")]
    known = set(re.findall(r"--[a-z][a-z-]+", parser.format_help()))
    near = get_close_matches(flags[0], known, 2) if flags else []
    return f"; did you mean {' or '.join(near)}?" if near else ""


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
