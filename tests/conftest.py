"""What tests share: the folder of real networks and images, the bundled network and a server of it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from inference_calls import Calls, calls_of
from refusals import NET, check_that_it_goes_on
from rest_calls import LONGEST_BODY, Http, array_in, json_body
from serving import running, running_server, stub_of
from triton_environment import environment

import convserve
from convserve.images import decode
from convserve.wire.convserve_pb2_grpc import ConvserveStub

if os.environ.get("CI"):
    # a change is judged by the same examples each time; `make test` goes on drawing new ones
    hypothesis.settings.register_profile("ci", derandomize=True)
    hypothesis.settings.load_profile("ci")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def no_measured_costs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plan from the shipped cost table, whatever this machine's user has measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return ../shared/data beside the repository; a test that needs it is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real networks and photos are not here ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests and the processes that they start a cache of packed networks of their own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def triton_python(pytestconfig: pytest.Config) -> Path:
    """Return the Python of an environment with tritonclient, kept with pytest's cache."""
    assert pytestconfig.cache is not None
    return environment(pytestconfig.cache)


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    """Return the bundled network."""
    return convserve.load(NET)


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    """Return the bundled page of digits, (height, width, 1)."""
    return decode(NET.with_name("page.png"), channels="gray")


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    """Return what the server of `address` takes at most, where a module says nothing else."""
    return {}


@pytest.fixture(scope="module")
def address(model: convserve.Model, limits: dict[str, int]) -> Iterator[str]:
    """Serve the bundled network as "digits"."""
    with running_server({"digits": model}, **limits) as address:
        yield address


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[ConvserveStub]:
    """Return a channel to the server of `address`."""
    with stub_of(address) as stub:
        yield stub


@pytest.fixture(scope="module")
def calls(address: str) -> Iterator[Calls]:
    """Return the same for the Open Inference Protocol."""
    with calls_of(address) as calls:
        yield calls


@pytest.fixture(scope="module")
def good(model: convserve.Model, stub: ConvserveStub) -> Callable[[], None]:
    """Return a check that the server of `address` answers rightly."""
    return lambda: check_that_it_goes_on(stub, model)


@pytest.fixture(scope="module")
def http() -> Iterator[Http]:
    """Serve the bundled digits over REST too, with short limits, and yield a client; at the end they are answered."""
    model, x = convserve.load(NET), np.zeros((1, 1, 28, 28), np.float32)
    with running({"digits": model}, {"http_port": 0}, message_bytes=LONGEST_BODY, stall_s=0.5) as server:
        http = Http(server.http_address)
        yield http
        assert np.array_equal(array_in(http.infer(json_body("image", x))), model.run(x))
