"""The short forms of `make fuzz` and `make soak`."""

from pathlib import Path

import pytest
from fuzz import fuzz, fuzz_server
from soak import soak


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_files_end_in_our_exceptions_or_run(seed: int, tmp_path: Path) -> None:
    outcomes = fuzz(0, tmp_path, seed=seed, rounds=40)
    assert sum(outcomes.values()) == 5 * 40
    assert {"container: ModelFormatError", "ONNX file: ModelFormatError", "picture: ImageError"} <= set(outcomes)
    assert {"Caffe network: ModelFormatError", "Caffe weights: ModelFormatError"} <= set(outcomes)


def test_damaged_requests_get_their_statuses() -> None:
    outcomes = fuzz_server(1, seed=1)
    assert outcomes["Classify: INVALID_ARGUMENT"]
    assert outcomes["ModelInfer: INVALID_ARGUMENT"]


def test_mixed_requests_from_eight_threads_are_answered_alike_in_steady_memory() -> None:
    done, grown, faults = soak(5)
    assert not faults
    assert done
    assert grown < 64 << 20
