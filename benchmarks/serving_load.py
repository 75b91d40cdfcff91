"""Callers of a server, with tritonclient and in its environment: what is asked comes as JSON on argv, one JSON back.

{"address": text, "model": name, "input": name, "shape": [1, C, H, W], "callers": n, "seconds": s, "send": "tensor" |
"jpeg" | "decoded", "rate": requests a second in all, or 0: each caller asks again when it is answered}
-> {"answered": n, "refused": n, "seconds": s, "latencies_s": [...]}. "jpeg" sends a photograph's bytes, "decoded"
decodes it here and sends float32.
"""

import io
import json
import sys
import threading
import time
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from PIL import Image

__all__ = ["measured"]


def _photo(height: int, width: int) -> bytes:
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class _Question:
    """What every call sends; decoding, where it is the caller's, is done each time."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.name, self.shape, self.send = asked["input"], asked["shape"], asked["send"]
        self.photo = _photo(*self.shape[2:])
        self.tensor = np.random.default_rng(0).standard_normal(self.shape, np.float32)

    def inputs(self) -> "list[triton.InferInput]":
        if self.send == "jpeg":
            encoded = triton.InferInput(self.name, [1], "BYTES")
            encoded.set_data_from_numpy(np.array([self.photo], object))
            return [encoded]
        x = self.tensor
        if self.send == "decoded":
            pixels = np.asarray(Image.open(io.BytesIO(self.photo)), np.float32)
            x = np.ascontiguousarray((pixels / 255).transpose(2, 0, 1)[None])
        tensor = triton.InferInput(self.name, list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        return [tensor]


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask for so many seconds and return what came."""
    question, lock = _Question(asked), threading.Lock()
    latencies: list[float] = []
    errors: list[Exception] = []
    refused = 0
    begin = time.perf_counter() + 0.2
    end = begin + asked["seconds"]
    gap = asked["callers"] / asked["rate"] if asked["rate"] else 0.0

    def call(number: int) -> None:
        nonlocal refused
        client = triton.InferenceServerClient(asked["address"])
        due = begin + gap * number / asked["callers"]
        time.sleep(max(0.0, due - time.perf_counter()))
        while (start := time.perf_counter()) < end:
            try:
                client.infer(asked["model"], question.inputs(), client_timeout=60)
                with lock:
                    latencies.append(time.perf_counter() - start)
            except triton.InferenceServerException as error:
                if "RESOURCE_EXHAUSTED" not in str(error.status()):
                    errors.append(error)
                    break
                with lock:
                    refused += 1
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()) if gap else 0.0)
        client.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(asked["callers"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    seconds = time.perf_counter() - begin
    return {"answered": len(latencies), "refused": refused, "seconds": seconds, "latencies_s": latencies}


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
