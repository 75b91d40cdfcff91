"""convserve bench: the time of whole runs, and where it goes, operation by operation."""

import argparse
import statistics
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import add_command, add_net, add_run_options, count, load_net
from convserve.cli.output import plan_fields, print_json, size_text
from convserve.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from convserve.engine.engine import Engine
    from convserve.model import Model
    from convserve.plan.describe import LayerDescription
    from convserve.plan.plan import Plan
    from convserve.plan.program import Operation

__all__ = ["measure_limits", "register", "run", "time_layers", "time_runs"]

WARM_RUNS = 3


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "bench",
        help="time runs of a network on random images, and with --layers each operation beside the machine's limits",
        example="convserve bench vgg16.convserve --threads 2\nconvserve bench resnet50.onnx --layers --runs 50",
    )
    add_net(parser)
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="images a run (default 1)")
    parser.add_argument("--runs", type=count, default=20, metavar="N", help="timed runs (default 20)")
    parser.add_argument("--layers", action="store_true", help="time each operation, and measure peak and bandwidth")
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    import numpy as np

    # what Python imports is no part of the network's load time
    import_module("convserve.loading")
    start = time.perf_counter()
    model = load_net(args.net, args, untrained=True)
    load_s = time.perf_counter() - start
    if model.window is None:
        raise InputError(f"the network {model.name} has no window of its own; import it with --window HxW")
    plan = model.plan(*model.window, batch=args.batch)
    shape = (args.batch, model.graph.input_volume.channels, *model.window)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    found: dict[str, Any] = {
        "network": model.name,
        "threads": plan.threads,
        "batch": args.batch,
        "runs": args.runs,
        "load_s": load_s,
        **time_runs(model, x, args.runs),
        "plan": plan_fields(plan),
    }
    if args.layers:
        found["limits"] = measure_limits(plan.threads)
        found |= time_layers(model, x, args.runs, threads=args.threads, limits=found["limits"])
    if args.json:
        print_json(found)
    else:
        print(_text(found))


def time_runs(model: "Model", x: "np.ndarray", runs: int) -> dict[str, Any]:
    """Return best and median milliseconds of Model.run, images per second of the best, and the first answer's time."""
    seconds = []
    for _ in range(WARM_RUNS + runs):
        start = time.perf_counter()
        model.run(x)
        seconds.append(time.perf_counter() - start)
    timed = seconds[WARM_RUNS:]
    return {
        "first_run_ms": 1e3 * seconds[0],
        "best_ms": 1e3 * min(timed),
        "median_ms": 1e3 * statistics.median(timed),
        "images_per_s": len(x) / min(timed),
    }


def measure_limits(threads: int) -> dict[str, float]:
    """Return this machine's peak (flop/s) and read bandwidth (bytes/s) for a number of threads, measured now."""
    from convserve.engine.limits import peak_flops, read_bandwidth

    return {"peak_flops": peak_flops(threads), "read_bytes_per_s": read_bandwidth(threads)}


def time_layers(
    model: "Model", x: "np.ndarray", runs: int, *, threads: int | None, limits: dict[str, float]
) -> dict[str, Any]:
    """Return {"layers": one entry for each operation of the plan, in order, "layers_ms": the sum of their best}.

    x: float32 (N, C, H, W), run as one group over one arena. An operation's time is that of all its steps, its best
    run. flops are those of the direct form, executed_flops those of the algorithm's multiplications, of which
    peak_share is; bytes count every value that is read or written once: inputs, output, weights.
    """
    from convserve.engine.engine import Engine
    from convserve.plan.describe import describe

    engine = Engine(model.graph, threads=threads)
    plan = engine.executor(x.shape[2], x.shape[3], images=len(x)).plan
    seconds = _operation_seconds(engine, x, runs)
    best = [min(times) for times in zip(*seconds, strict=True)]
    described = {layer.name: layer for layer in describe(model.graph).layers}
    layers = []
    for operation in plan.program.operations:
        known = described.get(operation.name) if operation.node is not None else None
        entry = _entry(operation, plan, known, max(best[operation.index], 1e-9))
        entry["share"] = best[operation.index] / (sum(best) or 1)
        entry["median_ms"] = 1e3 * statistics.median(times[operation.index] for times in seconds)
        entry["peak_share"] = 1e3 * entry["executed_flops"] / entry["best_ms"] / limits["peak_flops"]
        entry["read_share"] = entry["bytes_per_s"] / limits["read_bytes_per_s"]
        layers.append(entry)
    return {"layers": layers, "layers_ms": 1e3 * sum(best)}


def _operation_seconds(engine: "Engine", x: "np.ndarray", runs: int) -> list[list[float]]:
    """Return for each run the seconds of each operation, all runs over the same memory."""
    import numpy as np

    from convserve.engine.executor import Execution, Memory

    images, _, height, width = x.shape
    executor = engine.executor(height, width, images=images)
    program, plan = executor.plan.program, executor.plan
    sinks = {}
    for operation in program.operations:
        if operation.kind == "Write":
            shown = program.tensors[operation.inputs[0]]
            shape = (images, shown.height, shown.width, shown.volume.channels)
            sinks[operation.sink] = np.empty(shape, np.float32)
    memory = Memory(plan.arena_bytes + plan.scratch_bytes)
    seconds = []
    try:
        for _ in range(WARM_RUNS + runs):
            execution = Execution(executor, memory)
            execution.set_source(x.transpose(0, 2, 3, 1))
            for number, rows in sinks.items():
                execution.set_sink(number, rows)
            execution.advance(timed=True)
            seconds.append(execution.seconds_of_operations())
    finally:
        memory.close()
    return seconds[WARM_RUNS:]


def _entry(operation: "Operation", plan: "Plan", known: "LayerDescription | None", seconds: float) -> dict[str, Any]:
    tensors, node = plan.program.tensors, operation.node
    shown = tensors[operation.output if operation.output >= 0 else operation.inputs[0]]
    values = sum(tensors[index].rows_needed * _row_values(tensors[index]) for index in operation.inputs)
    values += plan.program.rows_of(operation) * _row_values(shown)
    if node is None:
        # from the caller's array, or into it
        values = 2 * plan.program.rows_of(operation) * _row_values(shown)
    moved = 4 * values * plan.images + _weight_bytes(operation)
    counts = known is not None and operation.kind != "WinogradInput"
    flops = known.flops * plan.images if known is not None and counts else 0
    return {
        "name": operation.name,
        "operation": known.op if known is not None and counts else operation.kind,
        "volume": [shown.height, shown.width, shown.volume.channels],
        "algorithm": _algorithm(operation),
        "best_ms": 1e3 * seconds,
        "flops": flops,
        "executed_flops": _executed(flops, operation, plan),
        "flops_per_s": flops / seconds,
        "bytes": moved,
        "bytes_per_s": moved / seconds,
    }


def _weight_bytes(operation: "Operation") -> int:
    # a layer that Winograd runs may hold its direct panels too, and its weights are read in its second step
    if operation.node is None or operation.kind == "WinogradInput":
        return 0
    unread = "panels" if operation.kind == "WinogradOutput" else "winograd_panels"
    return sum(array.nbytes for name, array in operation.node.params.items() if name != unread)


def _executed(flops: int, operation: "Operation", plan: "Plan") -> int:
    from convserve.plan.program import WINOGRAD_POINTS

    if operation.node is None or operation.kind != "WinogradOutput":
        return flops
    tiles, shown = plan.program.tensors[operation.inputs[0]], plan.program.tensors[operation.output]
    filter_area = operation.node.attrs["kernel_shape"][0] ** 2
    return flops * WINOGRAD_POINTS * tiles.height * tiles.width // (filter_area * shown.height * shown.width)


def _row_values(tensor: Any) -> int:
    return int(tensor.width * tensor.volume.channels)


def _algorithm(operation: "Operation") -> str:
    from convserve.formats.packing import is_depthwise

    node = operation.node
    if node is None or node.op != "Conv":
        return ""
    if operation.kind.startswith("Winograd"):
        return "winograd"
    if is_depthwise(node):
        return "depthwise"
    return "indirection"


def _text(found: dict[str, Any]) -> str:
    plan, images = found["plan"], found["batch"]
    lines = [
        f"{found['network']}: {images} image{'' if images == 1 else 's'} a run, {found['threads']} thread(s),"
        f" {found['runs']} runs",
        f"load {1e3 * found['load_s']:.1f} ms, first run {found['first_run_ms']:.2f} ms",
        f"best {found['best_ms']:.2f} ms, median {found['median_ms']:.2f} ms, {found['images_per_s']:.1f} images/s",
        f"arena {size_text(plan['arena_bytes'])}, scratch {size_text(plan['scratch_bytes'])},"
        f" weights {size_text(plan['weight_bytes'])}",
    ]
    if "layers" in found:
        lines += ["", *_layer_lines(found)]
    return "\n".join(lines)


def _layer_lines(found: dict[str, Any]) -> list[str]:
    limits, left = found["limits"], (0, 1, 2, 3)
    head = ("layer", "operation", "volume", "algorithm", "ms", "share", "GFLOP/s", "of peak", "MB", "GB/s", "of read")
    rows = [head, *(_layer_row(layer) for layer in found["layers"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    flops = sum(layer["flops"] for layer in found["layers"])
    lines.append(
        f"sum of the best of each {found['layers_ms']:.2f} ms,"
        f" {flops / 1e9:.2f} GFLOP at {flops / found['layers_ms'] / 1e6:.0f} GFLOP/s"
    )
    lines.append(
        f"measured limits: peak {limits['peak_flops'] / 1e9:.0f} GFLOP/s,"
        f" reads {limits['read_bytes_per_s'] / 1e9:.1f} GB/s"
    )
    lines.append("(GFLOP/s as if direct; of peak: what the algorithm multiplies; MB: each value and weight once)")
    return lines


def _layer_row(layer: dict[str, Any]) -> tuple[str, ...]:
    name, counts = layer["name"], layer["flops"] > 0
    height, width, channels = layer["volume"]
    return (
        name if len(name) <= 28 else "…" + name[-27:],
        layer["operation"],
        f"{height}x{width}x{channels}",
        layer["algorithm"],
        f"{layer['best_ms']:.3f}",
        f"{100 * layer['share']:.1f} %",
        f"{layer['flops_per_s'] / 1e9:.1f}" if counts else "",
        f"{100 * layer['peak_share']:.0f} %" if counts else "",
        f"{layer['bytes'] / 1e6:.2f}",
        f"{layer['bytes_per_s'] / 1e9:.1f}",
        f"{100 * layer['read_share']:.0f} %",
    )
