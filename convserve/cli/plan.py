"""convserve plan: what a run would take, before it takes it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import (
    add_classes,
    add_command,
    add_net,
    add_reduction,
    add_run_options,
    count,
    load_net,
    reduction_of,
    size_pair,
)
from convserve.cli.output import plan_fields, print_json, size_text
from convserve.errors import InputError
from convserve.reduction import Reduction
from convserve.results import PlanBytes

if TYPE_CHECKING:
    from convserve.dense import WayPlan

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "plan",
        help="print what a run over images of a size takes, to the byte, without running",
        example="convserve plan vgg16.onnx --size 4096x4096 --memory-budget 256MiB\n"
        "convserve plan vgg16.onnx --size 1024x1024 --stride 8\n"
        "convserve plan vgg16.onnx --size 8192x8192 --hold-scores --top 5 --dtype float16\n"
        "convserve plan vgg16.onnx --plot arena.png",
    )
    add_net(parser)
    parser.add_argument("--size", type=size_pair, metavar="HxW", help="image size (default: the network's window)")
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="images that run together (default 1)")
    parser.add_argument(
        "--stride", type=count, metavar="N", help="of a score map: print what each way to it is predicted to take"
    )
    parser.add_argument(
        "--hold-scores", action="store_true", help="count the scores too, of a map what is kept by the options below"
    )
    add_classes(parser)
    add_reduction(parser)
    parser.add_argument("--steps", action="store_true", help="print every step too")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the arena over time: what lies where, and when")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, draw, print."""
    from convserve.images.arena import arena_map
    from convserve.plan.report import activation_bytes, pair_bytes, ring_list
    from convserve.plan.timeline import timeline

    model = load_net(args.net, args, untrained=True)
    size = args.size or model.window
    if size is None:
        raise InputError(f"the network {model.name} has no window of its own; give --size HxW")
    if args.plot is not None and Path(args.plot).suffix != ".png":
        raise InputError(f"the plot is {args.plot!r}; its name must end in .png")
    ways = [] if args.stride is None else model.plan_ways(*size, stride=args.stride)
    if ways and args.batch > 1:
        raise InputError("--stride is of a score map, of one image; it cannot be given with --batch")
    reduce = reduction_of(args)
    held: dict[str, Any] = {"hold_scores": args.hold_scores, "classes": args.classes, "reduce": reduce}
    if not args.hold_scores and (args.classes is not None or reduce != Reduction()):
        raise InputError("--class, --top, --argmax, --softmax, --dtype are of scores that are held: add --hold-scores")
    if ways and args.hold_scores:
        raise InputError("--stride compares ways, not what they hold; it cannot be given with --hold-scores")
    plan = ways[0].plan if ways else model.plan(*size, batch=args.batch, **held)
    if isinstance(plan, PlanBytes):
        if args.plot is not None or args.steps:
            raise InputError(f"{model.name} cannot slide, so that a map is made of crops: its plan is none to be shown")
        print_json(_ways_json(ways)) if args.json else print(_ways_text(ways, args.stride))
        return
    if args.plot is not None:
        arena_map(timeline(plan)).save(args.plot, optimize=True)
    if args.json:
        sizes = {"network": model.name, "height": size[0], "width": size[1], "batch": args.batch}
        others = {"pair_bytes": pair_bytes(plan), "activation_bytes": activation_bytes(plan)}
        counts = {"threads": plan.threads, "segments": plan.segment_of[-1] + 1, "steps": plan.step_count}
        seconds: dict[str, Any] = {"predicted_s": plan.predicted_s}
        if ways:
            seconds |= _ways_json(ways)
        print_json({**sizes, **counts, **seconds, **plan_fields(plan), **others, "rings": ring_list(plan)})
        return
    print(plan.table())
    if ways:
        print(_ways_text(ways, args.stride))
    if args.steps:
        print(plan.steps())
    if args.plot is not None:
        print(f"wrote {args.plot}")


def _ways_json(ways: "list[WayPlan]") -> dict[str, Any]:
    costs = [{"method": way.method, "passes": way.passes, "predicted_s": way.predicted_s} for way in ways]
    return {"ways": [{**cost, **plan_fields(way.plan)} for cost, way in zip(costs, ways, strict=True)]}


def _ways_text(ways: "list[WayPlan]", stride: int) -> str:
    lines = [f"ways to stride {stride}; auto takes the first"]
    for way in ways:
        one, several = ("crop", "crops") if way.method.startswith("crops") else ("pass", "passes")
        runs = f"{way.passes:,} {one if way.passes == 1 else several}"
        memory = size_text(way.plan.arena_bytes + way.plan.scratch_bytes)
        lines.append(
            f"  {way.method:<12} {runs:>14}, predicted {way.predicted_s:9.4f} s, {memory} of arena and scratch"
        )
        if way.note:
            lines.append(f"    {way.note}")
    if len(ways) > 1:
        ratio = ways[1].predicted_s / ways[0].predicted_s
        lines.append(f"  {ways[0].method} is predicted {ratio:.2f} times as fast as {ways[1].method}")
    return "\n".join(lines)
