"""Networks as PyTorch exports them, both its exporters, against ONNX Runtime; the same forms without PyTorch are in
test_onnx_*.py and test_spelled*.py."""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx_writer import runtime_session

import convserve

missing = [package for package in ("torch", "torchvision", "onnxscript") if find_spec(package) is None]
if missing:
    pytest.skip(f"{' and '.join(missing)} not installed: make torch", allow_module_level=True)

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torchvision_networks import calibrated, filled, network  # noqa: E402

# torchvision_networks makes it importable
from torchvision.models.convnext import CNBlockConfig, ConvNeXt  # noqa: E402  # isort: skip

SIDE = 64
NAMES = (
    "efficientnet_b0",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)


def exported(module: nn.Module, path: Path, *, dynamo: bool, dynamic: bool, batch: int = 1) -> None:
    x = torch.zeros(batch, 3, SIDE, SIDE)
    options: dict[str, object] = {"dynamo": False, "input_names": ["x"], "output_names": ["y"]}
    if dynamo:
        options = {"dynamo": True, "external_data": False}
        options |= {"dynamic_shapes": ({0: "N"},)} if dynamic else {}
    elif dynamic:
        options["dynamic_axes"] = {"x": {0: "N"}, "y": {0: "N"}}
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(path), **options)
    logging.disable(logging.NOTSET)


def compare(path: Path, batch: int) -> None:
    x = np.random.default_rng(0).standard_normal((batch, 3, SIDE, SIDE)).astype(np.float32)
    session = runtime_session(str(path), optimized=False)
    [wanted] = session.run(None, {session.get_inputs()[0].name: x})
    y = np.asarray(convserve.load(path, cache=False, threads=1).run(x))
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES)
def test_what_the_torchscript_exporter_writes(name: str, tmp_path: Path) -> None:
    exported(calibrated(network(name), SIDE), tmp_path / "net.onnx", dynamo=False, dynamic=True, batch=2)
    compare(tmp_path / "net.onnx", 3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_the_newer_exporter_writes(dynamic: bool, tmp_path: Path) -> None:
    # all that is new in its spelling, in as few layers as can be: it takes seconds for each network
    module = ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], num_classes=10)
    exported(filled(module.eval()), tmp_path / "net.onnx", dynamo=True, dynamic=dynamic, batch=2)
    compare(tmp_path / "net.onnx", 2)
