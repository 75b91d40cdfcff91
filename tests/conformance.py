"""ONNX's own test-suite, run through convserve.onnx_backend: which cases there are, which pass, which are left out.

Cases are those of the operations below in onnx.backend.test.case.node, and all of the kinds "real" (the light
networks), "pytorch-converted" and "pytorch-operator". conformance_exclusions.txt lists, with a reason, the
cases that do not pass; all others must.
"""

import argparse
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from convserve import onnx_backend

__all__ = ["EXCLUSIONS", "NODE_FILES", "SUITE_VERSION", "cases", "failure"]

SUITE_VERSION = "1.23.2"
NODE_FILES = (
    "averagepool batch_normalization celu clip concat conv convtranspose depthtospace elu flatten gelu gemm "
    "globalaveragepool globalmaxpool groupnormalization hardsigmoid hardswish instance_normalization "
    "layernormalization leakyrelu logsoftmax lpnormalization lppool lrn maxpool meanvariancenormalization mish pad "
    "prelu relu reshape resize selu sigmoid slice softmax softplus softsign spacetodepth split swish tanh "
    "thresholdedrelu upsample"
)
KINDS = ("real", "pytorch-converted", "pytorch-operator")
LISTED = Path(__file__).with_name("conformance_exclusions.txt")


def read_exclusions() -> dict[str, str]:
    """Return the reason for each case that is left out, by its name."""
    lines = [line for line in LISTED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name: reason for name, _, reason in (line.partition(" ") for line in lines)}


EXCLUSIONS = read_exclusions()


def cases() -> Iterator[TestCase]:
    """Yield every case, node by node and then kind by kind; names are unique."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name in NODE_FILES.split():
            import_module(f"onnx.backend.test.case.node.{name}")
    yield from sorted(node_cases._NodeTestCases, key=lambda case: case.name)
    for kind in KINDS:
        yield from sorted(load_model_tests(kind=kind), key=lambda case: case.name)


def failure(case: TestCase) -> str:
    """Return why a case does not pass, or ""."""
    try:
        model, data_sets = _loaded(case)
        prepared = onnx_backend.prepare(model, threads=1)
        for inputs, expected in data_sets:
            found = prepared.run([_array(value) for value in inputs])
            Runner.assert_similar_outputs([_array(value) for value in expected], found, case.rtol, case.atol)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _array(value: object) -> object:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


DataSets = Sequence[tuple[Sequence[object], Sequence[object]]]


def _loaded(case: TestCase) -> tuple[onnx.ModelProto, DataSets]:
    if case.model is not None:
        return case.model, case.data_sets or ()
    if case.url is not None:
        return _light(Path(onnx.__file__).parents[1] / case.url, case.model_name)
    assert case.model_dir is not None
    folder = Path(case.model_dir)
    sets = [(_tensors(data, "input"), _tensors(data, "output")) for data in sorted(folder.glob("test_data_set_*"))]
    assert sets, f"{case.name} has no data"
    return onnx.load(str(folder / "model.onnx")), sets


def _light(path: Path, name: str) -> tuple[onnx.ModelProto, DataSets]:
    model = onnx.load(str(path))
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [
        Runner.generate_dummy_data(value, name=name) for value in model.graph.input if value.name not in initialized
    ]
    outputs = [
        onnx.load_tensor(str(path.with_name(f"{path.stem}_output_{number}.pb")))
        for number in range(len(model.graph.output))
    ]
    return model, [(inputs, outputs)]


def _tensors(folder: Path, what: str) -> list[onnx.TensorProto]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return [onnx.load_tensor(str(folder / f"{what}_{number}.pb")) for number in range(count)]


def main() -> None:
    """Run all cases and print how many pass and how many are left out, and why those fail that should not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--failures", action="store_true", help="also print why each case that is left out fails")
    options = parser.parse_args()
    passed, excluded, wrong = 0, 0, []
    for case in cases():
        why = failure(case)
        passed += not why
        if case.name in EXCLUSIONS:
            excluded += 1
            if options.failures:
                print(f"{case.name}: {why}")
        if bool(why) != (case.name in EXCLUSIONS):
            wrong.append(f"{case.name}: {why or 'passes, but is left out'}")
    missing = EXCLUSIONS.keys() - {case.name for case in cases()}
    wrong += [f"{name}: is left out, but this suite does not have it" for name in sorted(missing)]
    print(*wrong, sep="\n")
    if wrong and onnx.__version__ != SUITE_VERSION:
        print(f"{LISTED.name} is that of onnx {SUITE_VERSION}")
    print(f"onnx {onnx.__version__}: {passed} cases pass, {excluded} are left out ({LISTED.name}), {len(wrong)} differ")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
