"""convserve describe: the table of a network, layer by layer."""

import argparse
from typing import Any

from convserve.cli.arguments import BUNDLED, add_command, size_pair
from convserve.cli.output import print_json

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "describe",
        help="print volume, parameters, flops, receptive field and exactness of each layer, without running",
        example="convserve describe vgg16.onnx\nconvserve describe squeezenet.convserve --json",
    )
    parser.add_argument("net", nargs="?", metavar="NET", help="ONNX file or .convserve container (default: bundled)")
    parser.add_argument("--window", type=size_pair, metavar="HxW", help="input size, where the file leaves it open")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Describe and print."""
    from convserve.loading import load

    description = load(args.net or BUNDLED, window=args.window).describe()
    if args.json:
        print_json(description.to_dict())
    else:
        print(description.table())
