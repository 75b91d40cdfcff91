"""tritonclient as its users have it, gRPC and HTTP, in an environment of its own against our server; in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import add_version
from serving import running
from triton_environment import run

import convserve
from convserve.images import decode
from convserve.server import ModelFolder, Repository

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"
DIGIT = BUNDLED / "digit.png"


@pytest.mark.parametrize(("script", "parts"), [("tritonclient_calls.py", 7), ("tritonclient_http_calls.py", 7)])
def test_every_call_of_tritonclient_works(triton_python: Path, tmp_path: Path, script: str, parts: int) -> None:
    model = convserve.load(BUNDLED / "digits.convserve")
    x = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    local: Any = model.classify(DIGIT, top=11)
    digit = np.empty((1, 11), np.float32)
    for one in local:
        digit[0, one.index] = one.score
    np.savez(
        tmp_path / "expected.npz",
        x=x,
        y=model.run(x),
        half=model.run(x.astype(np.float16).astype(np.float32)),
        digit=digit,
        pixels=decode(DIGIT, channels="gray")[None],
        map=model.score_map(DIGIT, stride=2).scores,
    )
    add_version(tmp_path / "models", "small", 1)
    models = Repository({"digits": model}, ModelFolder(tmp_path / "models"))
    models.refresh()
    with running(models, {"http_port": 0}) as server:
        address = server.http_address if "http" in script else server.address
        told = run(triton_python, ROOT / "tests" / script, address, DIGIT, tmp_path / "expected.npz")
    assert told == f"passed {parts}\n"


OURS = "from convserve.wire.infer_messages import oip; assert oip.ModelInferRequest(id='a').id == 'a'"
TRITON = "from tritonclient import grpc; grpc.service_pb2.ModelInferRequest(id='a')"
# without kserve's other modules, which need all that kserve needs
KSERVE = (
    "import sys, importlib.util as u, pathlib; "
    "home = pathlib.Path(u.find_spec('tritonclient').submodule_search_locations[0]).parent; "
    "path = home / 'kserve/protocol/grpc/grpc_predict_v2_pb2.py'; "
    "spec = u.spec_from_file_location('grpc_predict_v2_pb2', path); module = u.module_from_spec(spec); "
    "spec.loader.exec_module(module); assert module.ModelInferRequest(id='a').id == 'a'"
)


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("other", [TRITON, KSERVE], ids=["tritonclient", "kserve"])
def test_all_of_them_import_into_one_process(triton_python: Path, other: str, order: str) -> None:
    run(triton_python, "-c", "\n".join([OURS, other] if order == "first" else [other, OURS]), PYTHONPATH=str(ROOT))
