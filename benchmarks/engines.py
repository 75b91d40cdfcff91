"""The engines that the benchmark compares: how each opens a network with float32 forced and a number of threads."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import convserve

__all__ = ["ENGINES", "EngineKind", "Opened", "installed"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded network: run(x) takes float32 (N, C, H, W) and gives its first output; facts are for the record.

    Where the image is larger than the network's window, convserve gives its score map, as (1, classes, rows, cols).
    """

    run: Callable[[np.ndarray], np.ndarray]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One engine: title, package and module to import before the clock starts, file that it reads, how it opens it.

    open(path, threads, x): x is an array of the shape that run will be given.
    """

    title: str
    package: str
    module: str
    suffix: str
    open: Callable[[Path, int, np.ndarray], Opened]

    def version(self) -> str | None:
        """Return the version that is here, None where the engine is not."""
        if self.package == "convserve":
            return convserve.__version__
        try:
            return version(self.package) if find_spec(self.package) else None
        except PackageNotFoundError:
            return None

    def load_library(self) -> None:
        """Import what the engine needs, so that the load time is the network's alone."""
        # OpenVINO's package would fork a child that sends usage data; without this module it sends none
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import_module(self.module)


def _open_convserve(path: Path, threads: int, x: np.ndarray) -> Opened:
    from convserve.kernels import dispatch
    from convserve.loading import load

    model = load(path, threads=threads)

    def run(x: np.ndarray) -> np.ndarray:
        if x.shape[2:] != model.window:
            return model.score_map(x).scores.transpose(2, 0, 1)[None]
        found = model.run(x)
        return next(iter(found.values())) if isinstance(found, dict) else found

    plan = model.plan(x.shape[2], x.shape[3])
    facts = {name: getattr(plan, name) for name in ("arena_bytes", "scratch_bytes", "weight_bytes")}
    return Opened(run, {"instruction_set": dispatch.active(), "plan_of_one_image": facts})


def _open_onnxruntime(path: Path, threads: int, x: np.ndarray) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its threads may spin within a run, as by default, but not while another engine is at work
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return Opened(lambda x: session.run([output], {name: x})[0], {"precision": "f32"})


def _open_openvino(path: Path, threads: int, x: np.ndarray) -> Opened:
    import openvino

    wanted = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", wanted)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != "f32":
        raise RuntimeError(f"OpenVINO runs in {precision}; f32 was asked for")
    request = compiled.create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        request.infer([x], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    facts = {"precision": precision, "threads": compiled.get_property("INFERENCE_NUM_THREADS")}
    return Opened(run, facts)


def _open_torch(path: Path, threads: int, x: np.ndarray) -> Opened:
    from benchmarks.torch_graph import open_torch

    return Opened(open_torch(path, threads, x), {"precision": "f32"})


ENGINES: dict[str, EngineKind] = {
    "convserve": EngineKind("convserve", "convserve", "convserve.loading", ".convserve", _open_convserve),
    "onnxruntime": EngineKind("ONNX Runtime", "onnxruntime", "onnxruntime", ".onnx", _open_onnxruntime),
    "openvino": EngineKind("OpenVINO", "openvino", "openvino", ".onnx", _open_openvino),
    "torch": EngineKind("PyTorch", "torch", "benchmarks.torch_graph", ".onnx", _open_torch),
}


def installed() -> list[str]:
    """Return the engines that are here, in the order of ENGINES."""
    return [name for name, kind in ENGINES.items() if kind.version() is not None]
