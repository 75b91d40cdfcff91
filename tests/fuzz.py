"""Fuzzing, behind `make fuzz`: damaged files end in our exceptions, or run, and damaged requests in their statuses."""

import argparse
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from caffe_files import drawn_weights, every_layer, files
from container_files import every_operation
from hostile import JUNK, REFUSALS, Hostile, connections, damaged
from onnx_writer import to_onnx
from PIL import Image
from refusals import DIGIT, NET
from serving import running_server

import convserve
from convserve.errors import ConvserveError
from convserve.formats.container_writer import write_container
from convserve.images import decode

__all__ = ["fuzz", "fuzz_server"]

MOST_VALUES = 1 << 20


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


def fuzz(seconds: float, folder: Path, *, seed: int = 0, rounds: int = 1) -> Counter[str]:
    """Damage and load for that long, and one of each for so many rounds; return how often what was refused, or ran.

    Raises what is no ConvserveError; the content that ended so is left in the folder as culprit.bin.
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
    while rounds > 0 or time.monotonic() < end:
        rounds -= 1
        for what, (seeds, take) in sources.items():
            content = damaged(seeds[random.integers(len(seeds))], random)
            culprit.write_bytes(content)
            try:
                take(content)
                outcomes[f"{what}: ran"] += 1
            except ConvserveError as error:
                outcomes[f"{what}: {type(error).__name__}"] += 1
    return outcomes


def fuzz_server(seconds: float, *, seed: int = 0) -> Counter[str]:
    """Ask a server damaged things for that long; return how often each status came.

    Raises AssertionError for a status that no bad request may get, or where good ones are answered otherwise.
    """
    random = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with running_server({"digits": convserve.load(NET)}) as address, convserve.Client(address) as client:
        expected = client.classify(DIGIT)
        while time.monotonic() < end:
            said = [JUNK[kind](random) for kind in random.choice(list(JUNK), 3)]
            with connections(address, *said), grpc.insecure_channel(address) as channel:
                hostile = Hostile(channel, seed=int(random.integers(1 << 32)))
                for _ in range(100):
                    method, code, text, sent = hostile.call()
                    outcomes[f"{method}: {code.name}"] += 1
                    allowed = (*REFUSALS, grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED)
                    assert code in allowed, (method, code, text, sent)
            assert client.classify(DIGIT) == expected
    return outcomes


def main() -> None:
    """Fuzz for the time asked for and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="how long (default 300)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convserve-fuzz-"))
    print(f"seed {options.seed}, culprits in {folder}", flush=True)
    outcomes = fuzz(options.seconds / 2, folder, seed=options.seed)
    outcomes += fuzz_server(options.seconds / 2, seed=options.seed)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>8} {outcome}")


if __name__ == "__main__":
    main()
