"""convserve plan: what a run would take, before it takes it."""

import argparse
from pathlib import Path
from typing import Any

from convserve.cli.arguments import add_command, add_net, add_run_options, count, load_net, size_pair
from convserve.cli.output import plan_fields, print_json
from convserve.errors import InputError

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "plan",
        help="print what a run over images of a size takes, to the byte, without running",
        example="convserve plan vgg16.onnx --size 4096x4096 --memory-budget 256MiB\n"
        "convserve plan vgg16.onnx --plot arena.png",
    )
    add_net(parser)
    parser.add_argument("--size", type=size_pair, metavar="HxW", help="image size (default: the network's window)")
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="images that run together (default 1)")
    parser.add_argument("--steps", action="store_true", help="print every step too")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the arena over time: what lies where, and when")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, draw, print."""
    from convserve.images.arena import arena_map
    from convserve.plan.report import activation_bytes, pair_bytes, ring_list
    from convserve.plan.timeline import timeline

    model = load_net(args.net, args)
    size = args.size or model.window
    if size is None:
        raise InputError(f"the network {model.name} has no window of its own; give --size HxW")
    if args.plot is not None and Path(args.plot).suffix != ".png":
        raise InputError(f"the plot is {args.plot!r}; its name must end in .png")
    plan = model.plan(*size, batch=args.batch)
    if args.plot is not None:
        arena_map(timeline(plan)).save(args.plot, optimize=True)
    if args.json:
        sizes = {"network": model.name, "height": size[0], "width": size[1], "batch": args.batch}
        others = {"pair_bytes": pair_bytes(plan), "activation_bytes": activation_bytes(plan)}
        counts = {"threads": plan.threads, "segments": plan.segment_of[-1] + 1, "steps": plan.step_count}
        seconds = {"predicted_s": plan.predicted_s}
        print_json({**sizes, **counts, **seconds, **plan_fields(plan), **others, "rings": ring_list(plan)})
        return
    print(plan.table())
    if args.steps:
        print(plan.steps())
    if args.plot is not None:
        print(f"wrote {args.plot}")
