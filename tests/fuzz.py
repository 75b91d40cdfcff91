"""Fuzzing, behind `make fuzz`: damaged containers, ONNX and Caffe files and pictures end in our exceptions, or run."""

import argparse
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from caffe_files import drawn_weights, every_layer, files
from container_files import every_operation
from onnx_writer import to_onnx
from PIL import Image

import convserve
from convserve.errors import ConvserveError
from convserve.formats.container_writer import write_container
from convserve.images import decode

__all__ = ["damaged", "fuzz"]

MOST_VALUES = 1 << 20


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return the bytes cut short, or with some of them changed, doubled or taken out."""
    kind, at, count = random.integers(5), int(random.integers(len(content))), int(random.integers(1, 64))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + content[at + count :]
    if kind == 2:
        return content[: at + count] + content[at:]
    changed = bytearray(content)
    # headers decide most, so half of the changes fall there
    reach = min(len(content), 4096) if kind == 3 else len(content)
    for place in random.integers(reach, size=int(random.integers(1, 8))):
        changed[place] = random.integers(256)
    return bytes(changed)


def load_and_run(source: Path | bytes) -> None:
    """A damaged network that loads all the same must also run, where it is not too large for a test."""
    model = convserve.load(source, threads=1, cache=False)
    channels = model.graph.input_volume.channels
    if model.window and channels * model.window[0] * model.window[1] <= MOST_VALUES:
        model.run(np.zeros((1, channels, *model.window), np.float32))


def pictures(random: np.random.Generator) -> list[bytes]:
    """Return one small picture in each common format."""
    encoded = []
    for form in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(random.integers(256, size=(40, 30, 3), dtype=np.uint8)).save(stream, form)
        encoded.append(stream.getvalue())
    return encoded


def fuzz(seconds: float, folder: Path, *, seed: int = 0) -> Counter[str]:
    """Damage and load for that long; return how often what was refused, or ran. Raises what is no ConvserveError.

    The content that ended otherwise is left in the folder as culprit.bin.
    """
    random = np.random.default_rng(seed)
    path = folder / "net.convserve"
    containers = []
    for stored in ("fp32", "fp16", "bf16"):
        write_container(path, convserve.load(every_operation(), weights=stored).graph)
        containers.append(path.read_bytes())
    text, weights = every_layer(), drawn_weights(every_layer())
    sources: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {
        "container": (containers, lambda content: load_and_run(culprit)),
        "ONNX file": ([to_onnx(every_operation()).SerializeToString()], load_and_run),
        "Caffe network": ([text.encode()], lambda content: load_and_run(files(folder, content, weights))),
        "Caffe weights": ([weights], lambda content: load_and_run(files(folder, text, content))),
        "picture": (pictures(random), decode),
    }
    culprit = folder / "culprit.bin"
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for what, (seeds, take) in sources.items():
            content = damaged(seeds[random.integers(len(seeds))], random)
            culprit.write_bytes(content)
            try:
                take(content)
                outcomes[f"{what}: ran"] += 1
            except ConvserveError as error:
                outcomes[f"{what}: {type(error).__name__}"] += 1
    return outcomes


def main() -> None:
    """Fuzz for the time asked for and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long (default 300)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convserve-fuzz-"))
    print(f"seed {options.seed}, culprits in {folder}", flush=True)
    for outcome, count in sorted(fuzz(options.seconds, folder, seed=options.seed).items()):
        print(f"{count:>8} {outcome}")


if __name__ == "__main__":
    main()
