"""The long form of test_sizes.py: a run through a ring of more than 2^31 values, all of them written and read."""

import argparse
import time

import numpy as np
from builder import Builder
from numpy.lib.stride_tricks import as_strided
from runs import engine_of

from convserve.graph.ir import Volume
from convserve.plan.layout import Layout

__all__ = ["ROWS", "available_bytes", "run_huge"]

ROWS, CHANNELS, STEP = 600, 4, 4001
WIDTH = ((1 << 31) // (ROWS - 80) // CHANNELS // STEP + 1) * STEP
WHOLE_IMAGE_FIRST = Layout((1,), 8)


def available_bytes() -> int:
    """Return the memory that the system could give now, 0 where nothing tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = [int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable")]
    except OSError:
        found = []
    return found[0] if found else 0


def run_huge() -> tuple[int, float]:
    """Run, compare with NumPy's answer, and return the values of the image's ring and the seconds taken."""
    build = Builder(Volume(CHANNELS, ROWS, WIDTH), seed=5)
    graph = build.graph(build.conv(build.input, 8, 1, strides=(1, STEP), activation="relu"))
    line = np.random.default_rng(1).standard_normal(ROWS + WIDTH + CHANNELS).astype(np.float32)
    # every pixel differs from its neighbours, and the image takes no memory: pixel (y, x), channel c is line[y + x + c]
    image = as_strided(line, (1, ROWS, WIDTH, CHANNELS), (0, 4, 4, 4))
    engine = engine_of(graph, threads=2)
    executor = engine.executor(ROWS, WIDTH, layout=WHOLE_IMAGE_FIRST)
    ring = executor.plan.program.tensors[0]
    y = np.full((1, ROWS, WIDTH // STEP, 8), np.nan, np.float32)
    start = time.perf_counter()
    with engine.execution(executor) as run:
        run.set_source(image)
        run.set_sink(0, y)
        run.advance()
    seconds = time.perf_counter() - start
    node = graph.nodes[0]
    seen = image[:, :, ::STEP].astype(np.float64) @ node.params["weight"][:, :, 0, 0].T.astype(np.float64)
    np.testing.assert_allclose(y, np.maximum(seen + node.params["bias"], 0), rtol=1e-5, atol=1e-5)
    return ring.ring_rows * ring.row_pitch, seconds


def main() -> None:
    """Run where the machine has the memory; exit with a sentence where it has not."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    needed = 4 * ROWS * WIDTH * CHANNELS + (1 << 30)
    if available_bytes() < needed:
        raise SystemExit(f"{needed:,} bytes of memory are needed; {available_bytes():,} are available")
    values, seconds = run_huge()
    print(f"a ring of {values:,} values (2^31 are {1 << 31:,}): right everywhere, in {seconds:.1f} s")


if __name__ == "__main__":
    main()
