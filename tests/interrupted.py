"""Runs that are left half-way, and whether what they wrote is the map that was wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convserve
from convserve.scenes.writer import MapWriter

BUNDLED = Path(convserve.__file__).parent / "bundled"
NET = BUNDLED / "digits.convserve"


class Stopped(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


def page(height: int = 150, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8)


def arrays_of(found: Any) -> dict[str, np.ndarray]:
    indices = {} if found.indices is None else {"indices": np.asarray(found.indices[:])}
    return {"scores": np.asarray(found.scores[:]), **indices}


def assert_same(found: Any, wanted: Any) -> None:
    first, second = arrays_of(found), arrays_of(wanted)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert np.array_equal(array, second[name]), name
    for name in ("rows", "cols", "stride", "window", "exactness", "ring", "classes", "labels", "covered"):
        assert getattr(found, name) == getattr(wanted, name), name


def stop_after(rows: int, patch: pytest.MonkeyPatch, error: type[BaseException] = Stopped) -> None:
    add = MapWriter.add

    def stopping(self: MapWriter, first: int, arrays: dict[str, np.ndarray]) -> int:
        count = add(self, first, arrays)
        if self._added >= rows:
            raise error
        return count

    patch.setattr(MapWriter, "add", stopping)


def leave_after(rows: int, work: Callable[[], Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(rows, patch)
        with pytest.raises(Stopped):
            work()
