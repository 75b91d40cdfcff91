"""What a server keeps: decoding takes little more than the picture, and what calls used goes back to the system."""

import asyncio
import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_server_process import server_process

import convserve
from benchmarks.residency import Sampler, anonymous_bytes
from convserve.client import Client
from convserve.images.decode import decode
from convserve.server import admission
from convserve.server.admission import Admission
from convserve.server.heap import trim_heap

MIB = 1 << 20


def photo(height: int, width: int, *, mode: str = "RGB", orientation: int = 1) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).resize((width, height)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize(("mode", "of_pillow"), [("RGB", 4), ("L", 1)])
def test_decoding_takes_the_picture_once_in_pillow_and_once_as_an_array(mode: str, of_pillow: int) -> None:
    file, channels = photo(2400, 3200, mode=mode), {"RGB": "rgb", "L": "gray"}[mode]
    decode(file, channels=channels)
    trim_heap()
    with Sampler(every_s=0.0005) as sampler:
        found = decode(file, channels=channels)
    assert found.shape == (2400, 3200, len(mode))
    picture = 2400 * 3200
    assert sampler.peak_bytes - sampler.baseline_bytes < picture * (of_pillow + len(mode)) + 10 * MIB


@pytest.mark.parametrize("orientation", [1, 6])
def test_bands_give_the_pixels_that_the_whole_picture_has(orientation: int) -> None:
    file = photo(1200, 800, orientation=orientation)
    opened = Image.open(io.BytesIO(file))
    whole = np.asarray(opened if orientation == 1 else opened.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(decode(file), whole)


def test_a_picture_of_the_callers_stays_as_it_is() -> None:
    opened = Image.open(io.BytesIO(photo(96, 64, orientation=6)))
    assert decode(opened).shape == (64, 96, 3)
    assert opened.size == (64, 96)
    assert decode(opened).shape == (64, 96, 3)


CALL = SimpleNamespace(time_remaining=lambda: None)


def test_rest_comes_once_after_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "REST_S", 0.05)
    rests: list[int] = []

    async def work() -> None:
        queue = Admission(max_running=1, max_waiting=4, on_rest=lambda: rests.append(queue.calls))
        for _ in range(3):
            async with queue.call(CALL), queue.call(CALL):
                await asyncio.sleep(0.01)
        assert rests == []
        await asyncio.sleep(0.2)
        assert rests == [0]
        async with queue.call(CALL):
            await asyncio.sleep(0.2)
            assert rests == [0]
        await asyncio.sleep(0.2)
        assert rests == [0, 0]
        queue.close()

    asyncio.run(work())


def test_a_server_gives_back_what_large_photos_took() -> None:
    digits = Path(convserve.__file__).parent / "bundled" / "digits.convserve"
    files = [photo(1200, 28 * size, mode="L") for size in (80, 60, 40, 20)]
    with server_process(str(digits)) as (process, address), Client(address, timeout=60) as client:
        client.classify(Path(digits).with_name("digit.png"))
        time.sleep(1)
        before = anonymous_bytes(process.pid)

        def ask() -> None:
            with Client(address, timeout=60) as asking:
                for file in files:
                    asking.score_map(file, classes=[1])

        with Sampler(process.pid, every_s=0.005) as sampler:
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sampler.peak_bytes > before + 8 * MIB
        end = time.monotonic() + 10
        while anonymous_bytes(process.pid) > before + 24 * MIB:
            assert time.monotonic() < end, f"{anonymous_bytes(process.pid) - before:,} bytes were kept"
            time.sleep(0.1)
