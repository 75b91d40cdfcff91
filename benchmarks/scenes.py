"""A scene of any size from a tiled TIFF to a Zarr map with the top 5: memory of the whole processes, sampled.

`python -m benchmarks.scenes --side 16384` makes the scene, scores it in a process of its own, then through a server,
and prints what each took.
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
from benchmarks.servers import serving

__all__ = ["main", "make_scene", "measure", "measure_served"]

_LOAD = """
import json, sys, convserve
net = sys.argv[1]
model = (convserve.load if net.endswith((".onnx", ".convserve")) else convserve.build)(net)
"""

_TELL = """
print(json.dumps({"rows": found.rows, "cols": found.cols, "seconds": found.seconds,
    "planned_bytes": found.plan.total_bytes, "measured_bytes": found.report.measured_bytes}))
"""

_SCORE = """
scene, output = sys.argv[2:]
found = model.score_map(scene, output=output, reduce=convserve.Reduction(top=5))
"""

_ASK = """
import json, sys, convserve
address, scene, output = sys.argv[1:]
with convserve.Client(address, timeout=7200) as client:
    found = client.score_map(scene, output=output, reduce=convserve.Reduction(top=5))
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
    return _sampled([_LOAD + _SCORE + _TELL, net, str(scene), str(output)])


def measure_served(net: str, scene: Path, output: Path) -> dict[str, float]:
    """Score a scene through a server; return the same of the client, and the server's peak of anonymous bytes."""
    subprocess.run([sys.executable, "-c", _LOAD, net], check=True)
    with serving(Path(net)) as server, Sampler(server.pid, every_s=0.01) as sampler:
        found = _sampled([_ASK + _TELL, server.address, str(scene), str(output)])
    return {**found, "server_peak_anonymous_bytes": sampler.peak_bytes}


def _sampled(arguments: list[str]) -> dict[str, float]:
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)
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
        local = measure(args.net, scene, Path(folder) / "map.zarr")
        served = measure_served(args.net, scene, Path(folder) / "served.zarr")
    if args.json:
        print(json.dumps({"local": local, "served": served}))
        return
    print(f"{args.net} over {args.side}x{args.side}: {local['rows']}x{local['cols']} positions")
    print(
        f"one process: {local['seconds']:.1f} s, {_mebibytes(local['peak_anonymous_bytes'])} at its peak, "
        f"{_mebibytes(local['measured_bytes'])} of them planned"
    )
    print(
        f"through a server: {served['seconds']:.1f} s, server {_mebibytes(served['server_peak_anonymous_bytes'])}, "
        f"client {_mebibytes(served['peak_anonymous_bytes'])}"
    )


def _mebibytes(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    main()
