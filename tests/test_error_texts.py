"""What clients are told of failures: never a path of the server, an address in memory, or a line of code."""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hostile import damaged, png_bomb
from inference_calls import calls_of, request_of
from model_folders import add_version, put_garbage, repository
from onnx_maker import made
from refusals import PAGE
from serving import image_requests, row_requests, running_server

import convserve
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub
from convserve.wire.open_inference import messages as oip

SECRET = "secret-folder"


def _onnx(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository in which "good" and "cut" can be served at first, and each other fails in its own way."""
    root = tmp_path_factory.mktemp("there") / SECRET
    outside = add_version(root.parent, "outside", 1)
    for name in ("good", "cut", "garbage", "two", "labels", "config", "names", "hard", "fit", "budget", "torch"):
        add_version(root, name, 1, filters=200)
    put_garbage(root / "garbage/1/model.convserve")
    (root / "two/1/model.onnx").touch()
    (root / "labels/1/labels.txt").write_text("one\n")
    (root / "config/1/config.toml").write_text("threads = {")
    (root / "names/config.toml").write_text(f"labels = '{root}/x'\n")
    (root / "budget/1/config.toml").write_text("memory_budget = '1KiB'\n")
    (root / "hard/1/model.convserve").unlink()
    os.link(outside / "model.convserve", root / "hard/1/model.convserve")
    (root / "torch/1/model.convserve").write_bytes(b"\x80\x02}q\x00.")
    (root / "fit/1/config.toml").write_text("weights = 'fp16'\nfit = 'error'\n")
    (root / "link").mkdir()
    (root / "link/1").symlink_to(outside)
    (root / "leaf/1").mkdir(parents=True)
    (root / "leaf/1/model.convserve").symlink_to(outside / "model.convserve")
    _onnx(root / "op/1", made(("Det", "x", "y")))
    _onnx(root / "empty/1", b"")
    _onnx(root / "text/1", b"no network at all")
    (root / "nothing/1").mkdir(parents=True)
    (root / "folder/1/model.convserve").mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[str]:
    """Serve it."""
    found = repository(root)
    assert set(found.names) == {"good", "cut"}
    with running_server(found) as address:
        yield address


def texts_of(call: Callable[[], Any]) -> list[str]:
    """Return all that a call's answer says, whether it fails or not."""
    try:
        found = call()
    except grpc.RpcError as error:
        trailers = [f"{key}={value}" for key, value in error.trailing_metadata() or ()]
        return [error.details() or "", *trailers]
    return [str(one) for one in found] if isinstance(found, list) else [str(found)]


def everything(address: str, root: Path) -> Iterator[Callable[[], Any]]:
    """Yield calls of every method, of every model, of which most fail."""
    x = np.zeros((1, 3, 8, 8), np.float32)
    random = np.random.default_rng(0)
    with grpc.insecure_channel(address) as channel, calls_of(address) as calls:
        stub = ConvserveStub(channel)
        names = [*sorted(os.listdir(root)), "nobody", str(root), f"../{SECRET}/good", "", "\0"]

        def map_of(requests: Any) -> list[Any]:
            return list(stub.ScoreMap(requests))

        def stream_of(*requests: Any) -> list[Any]:
            return list(calls.ModelStreamInfer(iter(requests)))

        for name in names:
            yield partial(calls.RepositoryModelLoad, oip.RepositoryModelLoadRequest(model_name=name))
            yield partial(calls.ModelInfer, request_of("x", x, model=name))
            yield partial(calls.ModelMetadata, oip.ModelMetadataRequest(name=name))
            yield partial(calls.ModelConfig, oip.ModelConfigRequest(name=name))
            yield partial(calls.ModelStatistics, oip.ModelStatisticsRequest(name=name))
            yield partial(stream_of, request_of("x", x, model=name, dense=True))
            yield partial(stub.DescribeModel, pb.DescribeModelRequest(model=name))
            yield partial(stub.PlanMemory, pb.PlanMemoryRequest(model=name, height=9, width=9, memory_budget=1))
            yield partial(stub.Classify, pb.ClassifyRequest(model=name, images=[pb.Image(encoded=PAGE)]))
            yield partial(map_of, image_requests(PAGE, model=name))
            if name in ("nobody", "op"):
                yield partial(calls.RepositoryModelUnload, oip.RepositoryModelUnloadRequest(model_name=name))
        for file in (b"", b"none", png_bomb(60_000, 60_000), *(damaged(PAGE, random) for _ in range(6))):
            yield partial(stub.Classify, pb.ClassifyRequest(model="good", images=[pb.Image(encoded=file)]))
            yield partial(map_of, row_requests(np.zeros((9, 9, 2), np.uint8), model="good"))
        yield partial(calls.RepositoryIndex, oip.RepositoryIndexRequest())
        yield partial(stub.ListModels, pb.ListModelsRequest())
        yield partial(calls.RepositoryIndex, oip.RepositoryIndexRequest(repository_name="x"))


def test_no_answer_has_a_path_an_address_or_code(served: str, root: Path) -> None:
    paths = rf"{root.parents[1]}|{SECRET}|/(tmp|root|home|usr|var)/"
    places = re.compile(paths + r"|0x[0-9a-f]{6}|\.py\b|Traceback|object at")
    asked = [str(root), f"../{SECRET}/good"]
    seen: list[str] = []
    for number, call in enumerate(everything(served, root)):
        if number == 5:
            os.truncate(root / "cut/1/model.convserve", 4096)
        for text in texts_of(call):
            # what a client itself wrote may come back
            for own in asked:
                text = text.replace(repr(own)[1:-1], "")
            assert not places.search(text), text
            seen.append(text)
    whole = "\n".join(seen)
    for said in ("Det", "hard links", "has no version", "leads out of the repository", "labels", "config.toml"):
        assert said in whole, said
    assert "loading it failed" not in whole


def test_every_reason_of_the_index_is_one_sentence(served: str) -> None:
    with calls_of(served) as calls:
        index = calls.RepositoryIndex(oip.RepositoryIndexRequest()).models
    reasons = {one.name: one.reason for one in index if one.state != "READY"}
    assert len(reasons) >= 12
    for name, reason in reasons.items():
        assert reason, name
        assert "\n" not in reason, reason
        assert len(reason) < 500


def test_library_texts_name_the_file(tmp_path: Path) -> None:
    for content in (b"", b"none", b"\x80\x02}q\x00."):
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        with pytest.raises(convserve.errors.ModelError, match=re.escape(str(path))):
            convserve.load(path)
