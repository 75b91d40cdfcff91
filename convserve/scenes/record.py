"""What is known of a map that is being written: its geometry, whose it is, and how many rows are finished."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from convserve.errors import OutputError
from convserve.reduction import Reduction
from convserve.results import Geometry

__all__ = ["Record", "RecordFile", "restart", "shared_facts"]

_DIGITS = 12
_LISTS = ("classes", "labels")


@dataclass(slots=True)
class Record:
    """fingerprint: plain data that a run must share to go on with the map. rows_done: finished, from the first on.

    restart: (multiple, spare): a run may go on from score rows that are multiples of the first, if it leaves out its
    first `spare` rows, which would see the padding above them.
    """

    fingerprint: dict[str, Any]
    geometry: Geometry
    reduction: Reduction
    restart: tuple[int, int]
    rows_done: int = 0

    def go_on_at(self) -> int:
        """Return the score row from which a run has to compute, so that what it adds has the bits of one whole run."""
        multiple, spare = self.restart
        place, height = self.geometry, int(self.fingerprint["image"][0])
        # behind the last whole window an image has no rows of scores of its own
        last = (height - place.window[0]) // place.stride[0]
        return min(max(0, self.rows_done - spare), last) // multiple * multiple

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but rows_done as plain data."""
        return {
            "fingerprint": self.fingerprint,
            "geometry": _fields(self.geometry),
            "reduction": _fields(self.reduction),
            "restart": list(self.restart),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Record":
        """Return the record of such data; KeyError, TypeError or ValueError where it is none."""
        kept = dict(found["reduction"])
        if kept.get("value_range") is not None:
            kept["value_range"] = tuple(kept["value_range"])
        place: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) and name not in _LISTS else value
            for name, value in found["geometry"].items()
        }
        multiple, spare = map(int, found["restart"])
        return cls(
            dict(found["fingerprint"]), Geometry(**place), Reduction(**kept), (multiple, spare), int(found["rows_done"])
        )


def restart(geometry: Geometry, described: Mapping[str, Any]) -> tuple[int, int]:
    """Return Record.restart of a map by a network with this description, as Description.to_dict has it.

    A run over the lower part of an image has to put its windows where one over all of it does. In padded networks the
    first rows see its padding; and where Winograd's algorithm may run, tiles of at most four rows of a layer have to
    lie where they did, and carry what they see by up to three rows of that layer further.
    """
    own, step = int(described["output_stride"][0]), geometry.stride[0]
    if geometry.exactness == "exact":
        return math.lcm(own, step) // step, 0
    tiled = (layer for layer in described["layers"] if re.match(r"Conv F[35](?!.* S)", layer["op"]))
    reach = sum(3 * int(layer["stride"][0]) for layer in tiled)
    return math.lcm(4 * own, step) // step, geometry.ring[0] + -(-reach // step)


def shared_facts(options: Mapping[str, Any], reduction: Reduction) -> dict[str, Any]:
    """Return what a run has to share with the one that began a map, beside the network and the image."""
    facts = {**options, **_fields(reduction)}
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    # NumPy's numbers, and sequences of any kind
    return value.item() if hasattr(value, "item") else list(value)


def _fields(value: Geometry | Reduction) -> dict[str, Any]:
    kind = Geometry if isinstance(value, Geometry) else Reduction
    return {field.name: getattr(value, field.name) for field in fields(kind)}


class RecordFile:
    """The record as JSON beside its map. The count of finished rows is written over in place: a full disk allows it."""

    def __init__(self, output: Path) -> None:
        """output: of the map."""
        self.path = output.with_name(output.name + ".json")

    def create(self, record: Record) -> None:
        """Write it, with no row finished."""
        head = f'{{"rows_done": {record.rows_done:{_DIGITS}d}, '
        self.path.write_text(head + json.dumps(record.to_dict(), allow_nan=False)[1:] + "\n", encoding="utf-8")

    def advance(self, rows_done: int) -> None:
        """Say that so many rows are finished."""
        file = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(file, f"{rows_done:{_DIGITS}d}".encode(), len('{"rows_done": '))
        finally:
            os.close(file)

    def read(self) -> Record | None:
        """Return the record, None where there is no file. Raises OutputError where it is none of ours."""
        try:
            return Record.from_dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{str(self.path)!r} does not say how far the map is, so that it cannot be resumed: {error}"
            ) from error

    def remove(self) -> None:
        """Delete it, if it is there."""
        self.path.unlink(missing_ok=True)
