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
    from convserve.reduction import Reduction

__all__ = [
    "BUNDLED",
    "FITS",
    "add_classes",
    "add_command",
    "add_fit",
    "add_net",
    "add_parameters",
    "add_reduction",
    "add_run_options",
    "add_tls",
    "add_where",
    "byte_count",
    "count",
    "load_net",
    "open_net",
    "reduction_of",
    "remote_client",
    "seconds",
    "size_pair",
]

BUNDLED = Path(__file__).parents[1] / "bundled" / "digits.convserve"
"""The network that comes with convserve: handwritten digits, 28x28."""

FITS = ("floor", "error", "pad", "crop")
"""What --fit takes, as load(fit=) does."""

_NET = (
    "ONNX file, Caffe's .prototxt, .convserve container, built-in network (vgg16, resnet50, ...) or pattern"
    " (INPUT[32x32x3] -> ...)"
)


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
    # whose usage is shown where arguments are left over
    parser.set_defaults(parser=parser)
    return parser


def add_net(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the argument NET: the network's file, or what open_net builds (default: the bundled one)."""
    if required:
        parser.add_argument("net", metavar="NET", help=_NET)
    else:
        parser.add_argument("net", nargs="?", metavar="NET", help=f"{_NET} (default: the bundled digits)")


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Add --fit."""
    parser.add_argument(
        "--fit",
        choices=FITS,
        default="floor",
        help="where strides do not fit a volume: round down (default), refuse, pad it, or crop it",
    )


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add --parameters."""
    parser.add_argument(
        "--parameters",
        metavar="FILE",
        help="weights of a network that has none of its own: a PyTorch state dict in a safetensors file for a built-in"
        " network or a pattern (default: random weights), or the .caffemodel of a .prototxt (default: the one of its"
        " name beside it)",
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add --class and --class-index, of what a score map keeps."""
    parser.add_argument(
        "--class",
        "--classes",
        dest="classes",
        action="append",
        metavar="LABEL",
        help="class to keep, by its label or one of its names (repeat for several; default all); a picture of one is"
        " a heat map, of several the winners",
    )
    parser.add_argument(
        "--class-index", dest="classes", action="append", type=int, metavar="N", help="the same, by its index from 0"
    )


def add_reduction(parser: argparse.ArgumentParser) -> None:
    """Add --top, --argmax, --softmax, --dtype and --value-range, of what a score map keeps."""
    # with NumPy, which a server's supervisor does without
    from convserve.reduction import DTYPES

    parser.add_argument("--top", type=count, metavar="K", help="keep the best K classes of each position")
    parser.add_argument("--argmax", action="store_true", help="keep the index of the best class alone")
    parser.add_argument("--softmax", action="store_true", help="scores after a softmax over all classes")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the scores (default float32)")
    parser.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="scores that become 0 and 255 in uint8, or the ends of a heat map's scale",
    )


def reduction_of(args: argparse.Namespace, **instead: Any) -> "Reduction":
    """Return what add_reduction's arguments ask for, with other values instead of some; InputError as Reduction."""
    from convserve.reduction import Reduction

    asked: dict[str, Any] = {name: getattr(args, name) for name in ("top", "argmax", "dtype")}
    asked["scores"] = "softmax" if args.softmax else "raw"
    asked["value_range"] = None if args.value_range is None else tuple(args.value_range)
    return Reduction(**{**asked, **instead})


def add_where(parser: argparse.ArgumentParser, *, timeout: float = 30) -> None:
    """Add --net and --server, of which one may be given, --model, --model-version, --token, --tls,
    --certificate and --timeout.

    remote_client() makes the client that they ask for.
    """
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--net", metavar="NET", help=f"{_NET} (default: the bundled digits)")
    where.add_argument("--server", metavar="HOST:PORT", help="ask a server instead of running here")
    parser.add_argument("--model", default="", help="with --server: the model's name there (default: its only one)")
    parser.add_argument(
        "--model-version", default="", metavar="N", help="with --server: the model's version (default: the newest)"
    )
    said = "no limit" if math.isinf(timeout) else f"{timeout:g}"
    parser.add_argument(
        "--timeout", type=float, default=timeout, metavar="S", help=f"with --server: seconds (default {said})"
    )
    parser.add_argument("--token", metavar="FILE", help="with --server: file that holds the token to send")
    add_tls(parser, said="with --server: ")


def add_tls(parser: argparse.ArgumentParser, *, said: str = "") -> None:
    """Add --tls and --certificate, as clients take them. said: what their help begins with."""
    parser.add_argument(
        "--tls",
        nargs="?",
        const=True,
        metavar="ROOTS.pem",
        help=f"{said}encrypt; root certificates, by default the system's",
    )
    parser.add_argument(
        "--certificate",
        nargs=2,
        metavar=("CERT.pem", "KEY.pem"),
        help=f"{said}with --tls: the client's own certificate and its key, where the server asks for one",
    )


def remote_client(args: argparse.Namespace) -> "Client":
    """Return the client of the server that the options of add_where name; InputError where they cannot be meant."""
    from convserve.client import Client

    if args.threads is not None:
        raise InputError("--threads cannot be given together with --server, whose threads are its own")
    if args.fit != "floor":
        raise InputError("--fit cannot be given together with --server, whose networks are loaded already")
    if args.parameters is not None:
        raise InputError("--parameters cannot be given together with --server, whose networks are loaded already")
    token = None
    if args.token is not None:
        try:
            token = Path(args.token).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the token file {args.token!r} cannot be read: {error}") from error
    return Client(args.server, token=token, tls=args.tls, certificate=args.certificate, timeout=args.timeout)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add --fit, --parameters, --threads, --memory-budget, --no-cache and --evict-weights."""
    add_fit(parser)
    add_parameters(parser)
    parser.add_argument("--threads", type=count, metavar="N", help="threads of a run (default: all of this process)")
    parser.add_argument(
        "--memory-budget", type=byte_count, metavar="BYTES", help='for arena, scratch and held scores, e.g. "64MiB"'
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="pack the weights into private memory instead of mapping them from the cache (convserve cache)",
    )
    parser.add_argument(
        "--evict-weights",
        action="store_true",
        help="release each layer's mapped weights after use: less resident memory, slower runs",
    )


def load_net(net: str | None, args: argparse.Namespace, **options: Any) -> "Model":
    """Return the model of a NET (None: the bundled one) with the options of add_run_options, and others of load."""
    return open_net(
        net,
        fit=args.fit,
        parameters=args.parameters,
        threads=args.threads,
        memory_budget=args.memory_budget,
        cache=not args.no_cache,
        evict_weights=args.evict_weights,
        **options,
    )


def open_net(
    net: str | None,
    *,
    window: tuple[int, int] | None = None,
    parameters: str | None = None,
    untrained: bool = False,
    **options: Any,
) -> "Model":
    """Return the model of a file, a built-in network or a pattern (None: the bundled network); options of load.

    untrained: random weights will do for a file without any.
    """
    from convserve.formats.caffe_paths import is_untrained
    from convserve.loading import build, is_network, load

    random = untrained and parameters is None and net is not None and is_untrained(net)
    if net is None or not (random or is_network(net)):
        return load(net or BUNDLED, window=window, parameters=parameters, **options)
    if window is not None:
        raise InputError("--window is for files that leave their input size open; a built network has its own")
    return build(net, parameters=parameters, **options)


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


def seconds(text: str) -> float:
    """Return a number of seconds from 0 to a day."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to 86400")
    return number


def size_pair(text: str) -> tuple[int, int]:
    """Return (height, width) of "480x640", or of "224" for a square."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f'{text!r} is no size; give HEIGHTxWIDTH such as "480x640"')
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]
