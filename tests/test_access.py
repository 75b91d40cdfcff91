"""Bearer tokens: who may call what, wrong tokens and wrong files."""

import hashlib
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from serving import FakeModel, running_server

from convserve import errors
from convserve.client import Client
from convserve.server.access import Access
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub

SEES, LOADS, BOTH = "sees-0123456789abcdef", "loads-0123456789abcdef", "both-0123456789abcdef"
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def tokens_file(folder: Path, text: str | None = None) -> str:
    path = folder / "tokens.toml"
    path.write_text(
        f'[clients.sees]\ntoken = "{SEES}"\n'
        f'[clients.loads]\nsha256 = "{hashlib.sha256(LOADS.encode()).hexdigest()}"\nrights = ["control"]\n'
        f'[clients.both]\ntoken = "{BOTH}"\nrights = ["infer", "control"]\n'
        if text is None
        else text
    )
    path.chmod(0o600)
    return str(path)


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("x-other", b"\xff"), ("authorization", f"Bearer {token}")]


@pytest.mark.parametrize(
    ("token", "infers", "controls"), [(SEES, True, False), (LOADS, False, True), (BOTH, True, True)]
)
def test_rights_of_a_client(tmp_path: Path, token: str, infers: bool, controls: bool) -> None:
    access = Access(tokens_file(tmp_path))
    for method, allowed in ((INFER, infers), ("/convserve.v1.Convserve/ListModels", infers), (LOAD, controls)):
        if allowed:
            assert token.startswith(access.client(bearer(token), method))
        else:
            with pytest.raises(errors.PermissionDeniedError, match="lacks the right"):
                access.client(bearer(token), method)


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "")],
        [("authorization", SEES)],
        [("authorization", f"Basic {SEES}")],
        [("authorization", f"Bearer {SEES}x")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {SEES[:-1]}")],
        [("authorization", "Bearer " + "x" * 100_000)],
        [("authorization", f"Bearer {hashlib.sha256(LOADS.encode()).hexdigest()}")],
        [("authorization", f"Bearer {SEES}"), ("authorization", f"Bearer {BOTH}")],
        [("authorization", "Bearer " + "\0" * 32)],
    ],
)
def test_calls_without_a_right_token(tmp_path: Path, metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(errors.AuthenticationError) as error:
        Access(tokens_file(tmp_path)).client(metadata, INFER)
    assert SEES not in str(error.value)


def test_over_the_wire(tmp_path: Path) -> None:
    path = tokens_file(tmp_path)
    access = Access(path)
    with running_server({"fake": FakeModel()}, {"access": access}) as address:
        with Client(address, token=SEES) as client:
            assert client.list_models()[0]["name"] == "fake"
        with Client(address, token=LOADS) as client, pytest.raises(errors.PermissionDeniedError, match="'infer'"):
            client.list_models()
        for token in (None, "wrong"):
            with Client(address, token=token) as client:
                with pytest.raises(errors.AuthenticationError):
                    client.plan(28, 28)
                with pytest.raises(errors.AuthenticationError):
                    client.score_map(bytes(3_000_000), model="fake")
        with grpc.insecure_channel(address) as channel:
            assert HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
            for call in (
                lambda: ConvserveStub(channel).ListModels(pb.ListModelsRequest()),
                lambda: list(ConvserveStub(channel).ScoreMap(iter([pb.ScoreMapRequest()]))),
                lambda: list(
                    ServerReflectionStub(channel).ServerReflectionInfo(
                        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
                    )
                ),
            ):
                with pytest.raises(grpc.RpcError) as error:
                    call()
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        Path(path).write_text(f'[clients.new]\ntoken = "{LOADS}"\n')
        access.reload()
        with Client(address, token=LOADS) as client:
            assert client.list_models()
        with Client(address, token=SEES) as client, pytest.raises(errors.AuthenticationError):
            client.list_models()
        Path(path).write_text("garbage")
        access.reload()
        with Client(address, token=LOADS) as client:
            assert client.list_models()


def client_of(**entry: Any) -> str:
    return "[clients.a]\n" + "".join(f"{key} = {value}\n" for key, value in entry.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have one table for each client"),
        ("[clients]\n", "must have one table for each client"),
        ("[client.a]\ntoken = 'x'\n", "must have one table for each client"),
        ("clients = 3", "must have one table for each client"),
        ("[clients]\na = 3\n", "'a' is 3; it must be a table"),
        (client_of(token="'0123456789abcdef'", right="['infer']"), "the key 'right', which is none; did you mean"),
        (client_of(token="'short'"), "a token has 16 to 4096 ASCII characters"),
        (client_of(token="'with a space in its middle'"), "no space"),
        (client_of(token="123456789012345678"), "a token has 16"),
        (client_of(sha256="'abcd'"), "64 hexadecimal digits"),
        (client_of(sha256="3"), "64 hexadecimal digits"),
        (client_of(), "either token or sha256"),
        (client_of(token="'0123456789abcdef'", sha256="'" + "a" * 64 + "'"), "either token or sha256"),
        (client_of(token="'0123456789abcdef'", rights="[]"), "has the rights []; allowed"),
        (client_of(token="'0123456789abcdef'", rights="'infer'"), "has the rights 'infer'; allowed"),
        (client_of(token="'0123456789abcdef'", rights="['admin']"), "has the rights ['admin']; allowed"),
        (client_of(token="'0123456789abcdef'") + "[clients.b]\ntoken = '0123456789abcdef'\n", "two clients have"),
    ],
)
def test_wrong_files_are_named_and_tokens_are_not_told(tmp_path: Path, text: str, said: str) -> None:
    path = tokens_file(tmp_path, text)
    with pytest.raises(errors.InputError) as error:
        Access(path)
    assert said in str(error.value)
    assert path in str(error.value)
    assert "0123456789abcdef" not in str(error.value)


def test_plain_tokens_that_others_may_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tokens_file(tmp_path)
    os.chmod(path, 0o644)
    Access(path)
    assert "others may read it" in caplog.text
