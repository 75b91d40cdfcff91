"""Times VGG-16 at 224x224 beside ONNX Runtime, runs taken in turn in one process, two threads each."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

import convserve

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16() -> onnx.ModelProto:
    """Return VGG-16 with seeded random weights, as ONNX."""
    random = np.random.default_rng(0)
    nodes, weights, tensor, channels = [], [], "image", 3

    def weighted(op: str, name: str, shape: tuple[int, ...], **attributes: object) -> None:
        nonlocal tensor
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        bias = random.standard_normal(shape[0], np.float32) * np.float32(0.1)
        weights.append(numpy_helper.from_array(random.standard_normal(shape, np.float32) * scale, f"{name}_w"))
        weights.append(numpy_helper.from_array(bias, f"{name}_b"))
        nodes.append(helper.make_node(op, [tensor, f"{name}_w", f"{name}_b"], [name], name=name, **attributes))
        tensor = name

    def then(op: str, **attributes: object) -> None:
        nonlocal tensor
        nodes.append(helper.make_node(op, [tensor], [f"{tensor}_{op}"], **attributes))
        tensor = f"{tensor}_{op}"

    for stage, widths in enumerate(WIDTHS, 1):
        for number, width in enumerate(widths, 1):
            weighted("Conv", f"conv{stage}_{number}", (width, channels, 3, 3), pads=[1, 1, 1, 1])
            then("Relu")
            channels = width
        then("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    then("Flatten")
    for number, (inputs, outputs) in enumerate(((25088, 4096), (4096, 4096), (4096, 1000)), 6):
        weighted("Gemm", f"fc{number}", (outputs, inputs), transB=1)
        if number < 8:
            then("Relu")
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 224, 224])
    scores = helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, ["N", 1000])
    graph = helper.make_graph(nodes, "vgg16", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def main() -> None:
    """Print best and median milliseconds of both, their ratio, and what the plan takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="runs of each engine, taken in turn (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine (default 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.onnx"
        onnx.save(vgg16(), path)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        peer = onnxruntime.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
        model = convserve.load(path, threads=options.threads)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    engines = {"ONNX Runtime": lambda: peer.run(None, {"image": x})[0], "convserve": lambda: model.run(x)}
    first = {name: run() for name, run in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.runs):
        for name, run in engines.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    table = Table(title=f"VGG-16, 224x224, float32, batch 1, {options.threads} threads, {options.runs} runs in turn")
    for heading in ("engine", "best ms", "median ms", "best / ONNX Runtime's", "median / ONNX Runtime's"):
        table.add_column(heading, justify="right")
    peer_best, peer_median = min(seconds["ONNX Runtime"]), statistics.median(seconds["ONNX Runtime"])
    for name, times in seconds.items():
        best, median = min(times), statistics.median(times)
        table.add_row(
            name, f"{1e3 * best:.1f}", f"{1e3 * median:.1f}", f"{best / peer_best:.2f}", f"{median / peer_median:.2f}"
        )
    console = Console()
    console.print(table)
    reference = first["ONNX Runtime"]
    difference = float(np.abs(first["convserve"] - reference).max() / np.abs(reference).max())
    plan = model.plan(224, 224)
    console.print(
        f"largest difference {difference:.1e} of the largest score;"
        f" arena {plan.arena_bytes / 2**20:.2f} MiB, scratch {plan.scratch_bytes / 2**10:.0f} KiB"
    )


if __name__ == "__main__":
    main()
