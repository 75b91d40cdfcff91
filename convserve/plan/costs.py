"""The cost table: what a machine does in a second, from which the planner predicts; one comes with the package."""

from dataclasses import dataclass, fields, replace

__all__ = ["RATES", "SHIPPED", "CostTable", "shipped_table"]


@dataclass(frozen=True, slots=True)
class CostTable:
    """Rates of one thread with one instruction set, sizes of the caches, and what a step costs beside its work.

    gemm, winograd, depthwise: flops/s of convolutions by how they run. tiles: bytes/s of transformed tiles
    written. pool: values/s read. lrn: values/s. move: bytes/s read and written by what only passes over values.
    l2_bytes, l3_bytes: caches as one thread may count on them. l3, memory: bytes/s of weights read from the third
    cache and from memory; memory_shared: by all threads together; spill: bytes/s of rows written to or read from
    memory. step_s: seconds of a step beside its work; share_s: of offering it to other threads. tile_rows: pixels
    that a tile of the kernel takes; group_tiles: tiles that Winograd multiplies at a time.
    measured: when, or "" for a table that comes with the package; machine: where.
    """

    isa: str
    tile_rows: int
    group_tiles: int
    gemm: float
    winograd: float
    depthwise: float
    tiles: float
    pool: float
    lrn: float
    move: float
    l3: float
    memory: float
    memory_shared: float
    spill: float
    l2_bytes: float
    l3_bytes: float
    step_s: float
    share_s: float
    measured: str = ""
    machine: str = ""


# What a table holds beside what it is called.
RATES = tuple(field.name for field in fields(CostTable) if field.name not in ("isa", "measured", "machine"))

_AVX512 = CostTable(
    isa="avx512",
    tile_rows=14,
    group_tiles=56,
    gemm=118e9,
    winograd=113e9,
    depthwise=36e9,
    tiles=29e9,
    pool=14e9,
    lrn=1.2e9,
    move=20e9,
    l3=55e9,
    memory=38e9,
    memory_shared=70e9,
    spill=10e9,
    l2_bytes=1 << 20,
    l3_bytes=24 << 20,
    step_s=0.3e-6,
    share_s=4e-6,
)

_AVX2 = replace(_AVX512, isa="avx2", tile_rows=6, gemm=110e9, winograd=95e9)
_PORTABLE = replace(
    _AVX512,
    isa="portable",
    tile_rows=3,
    gemm=8e9,
    winograd=6e9,
    depthwise=17e9,
    tiles=26e9,
    pool=6e9,
    lrn=0.8e9,
)

SHIPPED: dict[str, CostTable] = {table.isa: table for table in (_AVX512, _AVX2, _PORTABLE)}


def shipped_table(isa: str = "avx512") -> CostTable:
    """Return the table that comes with the package for an instruction set; an unknown one is taken as portable."""
    return SHIPPED.get(isa, SHIPPED["portable"])
