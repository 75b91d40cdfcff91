"""A scene of any size from a tiled TIFF to a Zarr map with the top 5: memory of the whole process, sampled.

`python -m benchmarks.scenes --side 16384` makes the scene, scores it in a process of its own and prints what it took.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.residency import Sampler

__all__ = ["main", "make_scene", "measure"]

_LOAD = """
import json, sys, convserve
net = sys.argv[1]
model = (convserve.load if net.endswith((".onnx", ".convserve")) else convserve.build)(net)
"""

_SCORE = """
scene, output = sys.argv[2:]
found = model.score_map(scene, output=output, reduce=convserve.Reduction(top=5))
print(json.dumps({"rows": found.rows, "cols": found.cols, "seconds": found.seconds,
    "planned_bytes": found.plan.total_bytes, "measured_bytes": found.report.measured_bytes}))
"""


def make_scene(path: Path, side: int) -> None:
    """Write a deflated RGB TIFF of side x side pixels in tiles of 256x256, one row of tiles at a time."""
    import tifffile

    rng = np.random.default_rng(0)
    across = -(-side // 256)
    # noise that compresses a little, the same in every row of tiles
    tiles = [(rng.integers(0, 64, (256, 256, 3)) * 4).astype(np.uint8) for _ in range(min(across, 16))]

    def all_tiles() -> Iterator[np.ndarray]:
        for number in range(across * across):
            yield tiles[number * 7 % len(tiles)]

    tifffile.imwrite(
        path,
        all_tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        bigtiff=True,
    )


def measure(net: str, scene: Path, output: Path) -> dict[str, float]:
    """Score a scene in a process of its own; return what it printed, with its peak of anonymous bytes."""
    # what packs the weights into the cache is another process
    subprocess.run([sys.executable, "-c", _LOAD, net], check=True)
    command = [sys.executable, "-c", _LOAD + _SCORE, net, str(scene), str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process, Sampler(process.pid, every_s=0.01) as sampler:
        text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"scoring ended with exit code {process.returncode}")
    found: dict[str, float] = json.loads(text)
    return {**found, "peak_anonymous_bytes": sampler.peak_bytes}


def main(argv: list[str] | None = None) -> None:
    """Run the case and print a line, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--net", default="alexnet", help="file or built-in network (default alexnet)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.tif"
        make_scene(scene, args.side)
        found = measure(args.net, scene, Path(folder) / "map.zarr")
    if args.json:
        print(json.dumps(found))
        return
    peak, planned = (found[name] / (1 << 20) for name in ("peak_anonymous_bytes", "measured_bytes"))
    print(f"{args.net} over {args.side}x{args.side}: {found['rows']}x{found['cols']} positions")
    print(f"{found['seconds']:.1f} s; the whole process took {peak:.1f} MiB, {planned:.1f} MiB of them planned")


if __name__ == "__main__":
    main()
