"""convserve plan: what a run would take, before it takes it."""

import argparse
from typing import Any

from convserve.cli.arguments import add_command, add_run_options, count, load_net, size_pair
from convserve.cli.output import plan_fields, print_json
from convserve.errors import InputError

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "plan",
        help="print what a run over images of a size takes, to the byte, without running",
        example="convserve plan vgg16.onnx --size 4096x4096 --memory-budget 256MiB",
    )
    parser.add_argument("net", nargs="?", metavar="NET", help="ONNX file or .convserve container (default: bundled)")
    parser.add_argument("--size", type=size_pair, metavar="HxW", help="image size (default: the network's window)")
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="images that run together (default 1)")
    parser.add_argument("--steps", action="store_true", help="print every step too")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan and print."""
    model = load_net(args.net, args)
    size = args.size or model.window
    if size is None:
        raise InputError(f"the network {model.name} has no window of its own; give --size HxW")
    plan = model.plan(*size, batch=args.batch)
    if args.json:
        sizes = {"network": model.name, "height": size[0], "width": size[1], "batch": args.batch}
        print_json({**sizes, "threads": plan.threads, "steps": plan.step_count, **plan_fields(plan)})
        return
    print(plan.table())
    if args.steps:
        print(plan.steps())
