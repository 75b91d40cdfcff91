"""Arguments that several commands share, and the model that they name."""

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.errors import InputError, SettingError
from convserve.settings import parse_bytes

if TYPE_CHECKING:
    from convserve.client import Client
    from convserve.model import Model

__all__ = [
    "BUNDLED",
    "add_command",
    "add_run_options",
    "add_where",
    "byte_count",
    "count",
    "load_net",
    "remote_client",
    "size_pair",
]

BUNDLED = Path(__file__).parents[1] / "bundled" / "digits.convserve"
"""The network that comes with convserve: handwritten digits, 28x28."""


def add_command(commands: Any, name: str, *, help: str, example: str) -> argparse.ArgumentParser:
    """Return the parser of a new command, whose --help ends in an example; every command has --json."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="example:\n" + "\n".join("  " + line for line in example.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def add_where(parser: argparse.ArgumentParser, *, timeout: float = 30) -> None:
    """Add --net and --server, of which one may be given, and --model, --token, --tls, --timeout (infinity: no limit).

    remote_client() makes the client that they ask for.
    """
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--net", metavar="NET", help="ONNX file or .convserve container (default: the bundled digits)")
    where.add_argument("--server", metavar="HOST:PORT", help="ask a server instead of running here")
    parser.add_argument("--model", default="", help="with --server: the model's name there (default: its only one)")
    said = "no limit" if math.isinf(timeout) else f"{timeout:g}"
    parser.add_argument(
        "--timeout", type=float, default=timeout, metavar="S", help=f"with --server: seconds (default {said})"
    )
    parser.add_argument("--token", metavar="FILE", help="with --server: file that holds the token to send")
    parser.add_argument(
        "--tls",
        nargs="?",
        const=True,
        metavar="ROOTS.pem",
        help="with --server: encrypt; root certificates, by default the system's",
    )


def remote_client(args: argparse.Namespace) -> "Client":
    """Return the client of the server that the options of add_where name; InputError where they cannot be meant."""
    from convserve.client import Client

    if args.threads is not None:
        raise InputError("--threads cannot be given together with --server, whose threads are its own")
    token = None
    if args.token is not None:
        try:
            token = Path(args.token).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the token file {args.token!r} cannot be read: {error}") from error
    return Client(args.server, token=token, tls=args.tls, timeout=args.timeout)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add --threads and --memory-budget."""
    parser.add_argument("--threads", type=count, metavar="N", help="threads of a run (default: all of this process)")
    parser.add_argument(
        "--memory-budget", type=byte_count, metavar="BYTES", help='for arena, scratch and held scores, e.g. "64MiB"'
    )


def load_net(net: str | None, args: argparse.Namespace) -> "Model":
    """Return the model of a path (None: the bundled one) with the options of add_run_options."""
    from convserve.loading import load

    return load(net or BUNDLED, threads=args.threads, memory_budget=args.memory_budget)


def byte_count(text: str) -> int:
    """Return the bytes of "65536" or "64MiB"."""
    try:
        return parse_bytes(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Return a whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def size_pair(text: str) -> tuple[int, int]:
    """Return (height, width) of "480x640", or of "224" for a square."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f'{text!r} is no size; give HEIGHTxWIDTH such as "480x640"')
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]
