"""Offsets: where each ring lies in the arena, so that rings alive at the same time never overlap."""

from dataclasses import dataclass

__all__ = ["Region", "place"]

LINE = 64


@dataclass(slots=True)
class Region:
    """Bytes that are alive from segment `first` to segment `last`, and where they lie."""

    size_bytes: int
    first: int
    last: int
    offset: int = -1


def place(regions: list[Region]) -> int:
    """Set the offset of every region, a multiple of 64, and return the bytes of the arena.

    Largest first, each in the lowest gap between the regions it shares a segment with.
    """
    placed: list[Region] = []
    end = 0
    for region in sorted(regions, key=lambda region: -region.size_bytes):
        neighbours = sorted(
            (other for other in placed if other.first <= region.last and region.first <= other.last),
            key=lambda other: other.offset,
        )
        offset = 0
        for other in neighbours:
            if offset + region.size_bytes <= other.offset:
                break
            offset = max(offset, -(-(other.offset + other.size_bytes) // LINE) * LINE)
        region.offset = offset
        placed.append(region)
        end = max(end, offset + region.size_bytes)
    return -(-end // 4096) * 4096
