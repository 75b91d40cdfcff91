"""convserve describe: the table of a network, layer by layer."""

import argparse
from typing import TYPE_CHECKING, Any

from convserve import settings
from convserve.cli.arguments import add_command, add_fit, add_net, add_parameters, byte_count, open_net, size_pair
from convserve.cli.output import print_json
from convserve.errors import InputError

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "describe",
        help="print volume, parameters, flops, receptive field and exactness of each layer, without running",
        example="convserve describe vgg16\nconvserve describe net.onnx --fit error\n"
        "convserve describe deploy.prototxt\n"
        "convserve describe squeezenet.convserve --memory --memory-budget 64MiB",
    )
    add_net(parser)
    parser.add_argument("--window", type=size_pair, metavar="HxW", help="input size, where the file leaves it open")
    add_fit(parser)
    add_parameters(parser)
    parser.add_argument("--memory", action="store_true", help="print the bytes of each layer's weights instead")
    parser.add_argument(
        "--memory-budget",
        type=byte_count,
        metavar="BYTES",
        help='with --memory: print the batch and the images that fit, e.g. "64MiB" (default: CONVSERVE_MEMORY_BUDGET)',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Describe and print."""
    if args.memory_budget is not None and not args.memory:
        raise InputError("--memory-budget is for --memory; convserve plan takes one for a run")
    model = open_net(args.net, window=args.window, fit=args.fit, parameters=args.parameters, untrained=True)
    if args.memory:
        _memory(model, args.memory_budget or settings.get("MEMORY_BUDGET"), as_json=args.json)
    elif args.json:
        print_json(model.describe().to_dict())
    else:
        print(model.describe().table())


def _memory(model: "Model", budget: int | None, *, as_json: bool) -> None:
    weights, capacity = model.weights(), None if budget is None else model.capacity(budget)
    if as_json:
        print_json({**weights.to_dict(), "capacity": None if capacity is None else capacity.to_dict()})
        return
    print(weights.table())
    if capacity is not None:
        print(capacity.text())
