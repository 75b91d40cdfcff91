"""Offsets: where each ring lies in the arena, so that rings alive at the same time never overlap."""

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Region", "place"]

LINE = 64


@dataclass(slots=True)
class Region:
    """Bytes that are alive from segment `first` to segment `last`, and where they lie.

    brief: two such regions are never in use at the same time, so that they may overlap.
    """

    size_bytes: int
    first: int
    last: int
    offset: int = -1
    brief: bool = False

    def meets(self, other: "Region") -> bool:
        """Whether two regions must lie apart."""
        return self.first <= other.last and other.first <= self.last and not (self.brief and other.brief)


def _busiest(regions: list[Region]) -> list[int]:
    # of each region: the most bytes that are alive together with it in one segment
    loads: dict[int, int] = {}
    briefly: dict[int, int] = {}
    for region in regions:
        for segment in range(region.first, region.last + 1):
            if region.brief:
                briefly[segment] = max(briefly.get(segment, 0), region.size_bytes)
            else:
                loads[segment] = loads.get(segment, 0) + region.size_bytes
    for segment, size in briefly.items():
        loads[segment] = loads.get(segment, 0) + size
    return [max(loads[segment] for segment in range(region.first, region.last + 1)) for region in regions]


def _lay(regions: list[Region]) -> int:
    # one after another, each in the lowest gap between those before it that it shares a segment with
    placed: list[Region] = []
    end = 0
    for region in regions:
        offset = 0
        for other in placed:
            if not region.meets(other):
                continue
            if offset + region.size_bytes <= other.offset:
                break
            offset = max(offset, -(-(other.offset + other.size_bytes) // LINE) * LINE)
        region.offset = offset
        insort(placed, region, key=lambda other: other.offset)
        end = max(end, offset + region.size_bytes)
    return end


def place(regions: list[Region]) -> int:
    """Set the offset of every region, a multiple of 64, and return the bytes of the arena.

    Of some orders to place them in, each in the lowest gap, the first is taken that needs the fewest bytes: the largest
    first, or first those of the segments that hold most, the longest lived, or the first ones.
    """
    busiest = dict(zip(map(id, regions), _busiest(regions), strict=True))
    least = max(busiest.values())
    orders: tuple[Callable[[Region], tuple[int, ...]], ...] = (
        lambda region: (-region.size_bytes,),
        lambda region: (-busiest[id(region)], -region.size_bytes),
        lambda region: (region.first - region.last, -region.size_bytes),
        lambda region: ((region.first - region.last - 1) * region.size_bytes,),
        lambda region: (-busiest[id(region)], region.first - region.last, -region.size_bytes),
        lambda region: (region.first, -region.size_bytes),
    )
    best = 0
    offsets: list[int] = []
    for order in orders:
        end = _lay(sorted(regions, key=order))
        if not offsets or end < best:
            best, offsets = end, [region.offset for region in regions]
        if best <= least:
            break
    for region, offset in zip(regions, offsets, strict=True):
        region.offset = offset
    return -(-best // 4096) * 4096
