"""What a server imports and holds when it has begun: no more than it needs, so that it begins soon and stays small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from networks import light_path
from serving import process_of

import convserve
from convserve.client import Client
from convserve.loading import import_network

ROOT = Path(__file__).parents[1]
BUNDLED = Path(convserve.__file__).parent / "bundled"


def anonymous_bytes(pid: int) -> int:
    found = re.search(r"^Anonymous: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def test_a_command_imports_no_other_command() -> None:
    code = "import sys\nfrom convserve.cli.main import main\nmain(['serve', '--print-config'])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert {name for name in modules if name.startswith("convserve.cli.")} == {
        "convserve.cli.arguments",
        "convserve.cli.main",
        "convserve.cli.output",
        "convserve.cli.serve",
    }
    assert not modules & {"asyncio", "grpc", "numpy", "onnx", "PIL", "rich"}


def test_a_server_of_a_container_imports_no_onnx_and_no_client() -> None:
    code = "import sys\nfrom convserve.cli.main import main\nmain(['serve', '--port', '0'])\nprint(*sys.modules)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        with Client(address) as client:
            assert client.classify(BUNDLED / "digit.png")[0].label == "3"
        process.terminate()
        modules = process.stdout.read().split()
    assert "convserve.server.serving" in modules
    unwanted = ("onnx", "convserve.client", "convserve.formats.onnx", "convserve.formats.caffe.", "rich", "safetensors")
    assert not {name for name in modules if name.startswith(unwanted)}


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="/proc does not tell anonymous memory here")
def test_an_idle_server_is_small(tmp_path: Path) -> None:
    net = tmp_path / "net.convserve"
    import_network(light_path("squeezenet"), net)
    with process_of(str(net)) as (process, address), Client(address) as client:
        client.list_models()
        assert anonymous_bytes(process.pid) < 45 << 20
