"""One kind of run in a process of its own, its anonymous memory sampled: `python tests/peak_worker.py KIND`.

Prints {"planned", "measured", "baseline", "peak", "after", "samples"} as JSON, in bytes.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).parents[1]))

from builder import he, vgg16

import convserve
from benchmarks.residency import Sampler, anonymous_bytes
from convserve.results import RunReport

WIDE = 3000
DIGITS = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


def small_vgg() -> convserve.Model:
    return convserve.load(vgg16(draw=he(0), size=64, channels=16), threads=2)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def classify(model: convserve.Model) -> Callable[[], RunReport]:
    pixels = image(64, 64)
    return lambda: [model.classify(pixels).report for _ in range(300)][-1]


def batch(model: convserve.Model) -> Callable[[], RunReport]:
    x = np.random.default_rng(0).random((96, 3, 64, 64), np.float32)
    return lambda: model.measure(x)[1]


def score_map(model: convserve.Model) -> Callable[[], RunReport]:
    pixels = image(700, WIDE)
    return lambda: model.score_map(pixels).report


def budget(model: convserve.Model) -> Callable[[], RunReport]:
    pixels = image(700, WIDE)
    smallest = model.plan(700, WIDE, hold_scores=True).total_bytes * 9 // 10
    return lambda: model.score_map(pixels, memory_budget=smallest).report


def shifted(model: convserve.Model) -> Callable[[], RunReport]:
    pixels = image(300, WIDE)
    return lambda: model.score_map(pixels, stride=16).report


def stream(model: convserve.Model) -> Callable[[], RunReport]:
    block = image(64, WIDE)

    def rows() -> Iterator[np.ndarray]:
        for _ in range(12):
            yield block

    def run() -> RunReport:
        with model.row_stream(WIDE) as opened:
            report = RunReport(opened.plan, opened.allocated_bytes, 0.0)
        # few classes: a block of scores on its way out is the reader's, not the plan's
        for _ in model.stream(width=WIDE, rows=rows(), classes=[1, 2, 3]):
            pass
        return report

    return run


def scene(model: convserve.Model, height: int) -> Callable[[], RunReport]:
    folder = Path(tempfile.mkdtemp())
    tifffile.imwrite(folder / "scene.tif", image(height, WIDE), tile=(64, 64), compression="zlib")

    def run() -> RunReport:
        kept = convserve.Reduction(top=3)
        try:
            return model.score_map(folder / "scene.tif", output=folder / "map.npy", reduce=kept, stride=8).report
        finally:
            shutil.rmtree(folder)

    return run


KINDS = {kind.__name__: kind for kind in (classify, batch, score_map, budget, shifted, stream)}
KINDS |= {"low_scene": lambda model: scene(model, 400), "high_scene": lambda model: scene(model, 1600)}


def main(kind: str) -> None:
    model = convserve.load(DIGITS, threads=2) if "scene" in kind else small_vgg()
    # threads, imports and plans for the window are there before
    model.run(np.zeros((1, model.graph.input_volume.channels, *(model.window or ())), np.float32))
    model.score_map(image(64, 96))
    if "scene" in kind:
        scene(model, 100)()
    run = KINDS[kind](model)
    with Sampler() as sampler:
        report = run()
    found = {
        "planned": report.plan.total_bytes,
        "measured": report.measured_bytes,
        "baseline": sampler.baseline_bytes,
        "peak": sampler.peak_bytes,
        "samples": sampler.samples,
    }
    del report
    print(json.dumps({**found, "after": anonymous_bytes(os.getpid())}))


if __name__ == "__main__":
    main(sys.argv[1])
