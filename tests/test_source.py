"""The house rules of the source: what each room may import, names made public on purpose, short files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "convserve"
GENERATED = ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi")
LONGEST = 400

PYTHON = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith(GENERATED))
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
TESTS = sorted((ROOT / "tests").glob("*.py"))
WRITTEN = sorted(
    path
    for folder in ("convserve", "tests", "protos", "benchmarks", "training")
    for pattern in ("*.py", "*.pyi", "*.pyx", "*.pxd", "cs_*.[ch]", "*.proto")
    for path in (ROOT / folder).rglob(pattern)
    if not path.name.endswith(GENERATED) and ".venv" not in path.parts
)

# Each room may import itself, those in its row, and nothing else of ours. The ground lies under all.
GROUND = {"errors", "optional", "settings", "reduction", "averaging", "results", "progress"}
MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors"},
    "optional": {"errors"},
    "reduction": {"errors"},
    "averaging": {"errors"},
    "results": {"errors", "reduction"},
    "progress": set(),
    "wire": GROUND,
    "kernels": GROUND,
    "graph": GROUND,
    "formats": GROUND | {"graph"},
    "images": GROUND,
    "scenes": GROUND | {"images"},
    "plan": GROUND | {"graph", "formats"},
    "engine": GROUND | {"graph", "formats", "plan", "kernels"},
    "dense": GROUND | {"graph", "plan", "engine"},
    "inputs": GROUND | {"graph", "images", "scenes", "engine"},
    "writing": GROUND | {"graph", "images", "scenes"},
    "model": GROUND | {"graph", "formats", "images", "scenes", "plan", "engine", "dense", "inputs", "writing"},
    "loading": GROUND | {"graph", "formats", "images", "model"},
    "onnx_backend": GROUND | {"model", "loading"},
    "client": GROUND | {"wire", "images", "scenes"},
    "server": GROUND | {"wire", "images", "graph", "engine", "dense", "model", "loading"},
    "cli": GROUND
    | {"wire", "images", "scenes", "formats", "kernels", "engine", "plan", "dense", "model", "loading"}
    | {"client", "server"},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py").removesuffix(".pyx").removesuffix(".pxd")


def imports_of(path: Path) -> set[str]:
    """Return the rooms that a file imports; what only type checkers import does not count."""
    if path.suffix in (".pyx", ".pxd"):
        return set(re.findall(r"^ *(?:from|c?import) convserve\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            module = node.module or ""
            modules += [f"{module}.{alias.name}" for alias in node.names] if module == "convserve" else [module]
    return {module.split(".")[1] for module in modules if module.startswith("convserve.")} - {"__version__"}


@pytest.mark.parametrize("path", PYTHON + CYTHON, ids=name_of)
def test_a_room_imports_only_those_below_it(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert imports_of(path) - {room} <= MAY_IMPORT[room]


def test_no_room_is_above_itself() -> None:
    def below(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, f"{' -> '.join(path)} -> {room}"
        for lower in MAY_IMPORT[room]:
            below(lower, (*path, room))

    for room in MAY_IMPORT:
        below(room, ())
    rooms = {room_of(path) for path in PYTHON} - {"__init__", "__main__"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_every_module_says_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    public: list[str] | None = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
            if "__all__" in {getattr(target, "id", "") for target in targets} and node.value is not None:
                public = ast.literal_eval(node.value)
    assert public is not None, "no explicit __all__"
    if "__getattr__" not in names:
        assert set(public) <= names


@pytest.mark.parametrize("path", PYTHON + TESTS, ids=name_of)
def test_the_first_line_says_the_files_purpose(path: Path) -> None:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first.startswith('"""')
    assert len(first) > 20


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_files_are_short_and_have_nothing_left_to_do(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    assert not [number for number, line in enumerate(lines, 1) if any(mark in line for mark in marks)]


# What would run what a file says, or fetch what a text names.
UNWANTED = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve", "yaml", "torch"}
UNWANTED |= {"urllib", "urllib3", "requests", "http.client", "ftplib", "httpx", "aiohttp", "fsspec", "boto3"}
UNWANTED_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_no_star_imports_and_nothing_that_unpickles_or_loads_from_urls(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert [alias.name for alias in node.names] != ["*"]
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") not in UNWANTED_CALLS
            refused = [one for one in node.keywords if one.arg in ("allow_pickle", "shell")]
            assert all(isinstance(one.value, ast.Constant) and not one.value.value for one in refused)
        found = {name for module in modules for name in (module, module.split(".")[0])}
        assert not found & UNWANTED, f"{name_of(path)} imports {found & UNWANTED}"


def test_the_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which makes the stubs, is not installed")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    protos = [str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*.proto")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", *outputs, *protos], cwd=ROOT, check=True)
    for name in ("wire/convserve_pb2.py", "wire/convserve_pb2_grpc.py", "formats/caffe/net_pb2.py"):
        made = (tmp_path / "convserve" / name).read_text()
        assert (PACKAGE / name).read_text() == made, "the stubs are old: make build"


def test_the_descriptor_set_is_that_of_the_proto(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools, which makes the descriptor set, is not installed")
    made = tmp_path / "open_inference.binpb"
    proto = "protos/convserve/wire/open_inference.proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", f"--descriptor_set_out={made}", proto]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (PACKAGE / "wire" / made.name).read_bytes() == made.read_bytes(), "the descriptor set is old: make build"
