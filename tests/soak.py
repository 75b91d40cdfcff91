"""A soak, behind `make soak`: good, bad and hostile requests from eight threads, watching memory and descriptors."""

import argparse
import io
import os
import threading
import time
from pathlib import Path

import grpc
import numpy as np
from hostile import JUNK, REFUSALS, Hostile, connections
from inference_calls import Calls, array_of, request_of
from PIL import Image
from serving import running_server, settled

import convserve
from convserve.errors import ConvserveError

__all__ = ["soak"]

BUNDLED = Path(convserve.__file__).parent / "bundled"
THREADS = 8
PATIENCE_S = 600  # a machine may be busy with other things


def resident_bytes() -> int:
    """Return what this process, server and clients, has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def descriptors() -> int:
    """Return how many files and connections this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Soak:
    """A server and clients in one process: what is asked, what must be answered, and what was seen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.digit = (BUNDLED / "digit.png").read_bytes()
        self.page = np.asarray(Image.open(BUNDLED / "page.png").convert("L"))[:, :, None]
        self.end = 0.0
        self.lock = threading.Lock()
        self.done = 0
        self.faults: list[str] = []
        self.files = request_of("image", [self.digit])
        with convserve.Client(address, timeout=PATIENCE_S) as client, grpc.insecure_channel(address) as channel:
            self.prediction = client.classify(self.digit, top=3)
            self.scores = client.score_map(self.page).scores
            self.values = array_of(Calls(channel).ModelInfer(self.files))

    def ask(self, client: convserve.Client, hostile: Hostile, kind: int) -> None:
        """Make one request of a kind and compare its answer."""
        if kind < 3:
            assert client.classify(self.digit, top=3) == self.prediction, "another prediction"
        elif kind < 5:
            assert np.array_equal(client.score_map(self.page).scores, self.scores), "other scores"
        elif kind == 5:
            with client.score_stream(self.page) as stream:
                next(iter(stream))  # and the rest is cancelled
        elif kind == 6:
            self.refused(lambda: client.classify(b"no image"))
        elif kind == 7:
            self.refused(lambda: client.classify(self.digit, model="nobody"))
        elif kind == 8:
            self.refused(lambda: client.score_map(self.page[:20]))
        elif kind == 9:
            assert np.array_equal(array_of(Calls(hostile.channel).ModelInfer(self.files)), self.values), "other values"
        elif kind == 10:
            method, code, text, _ = hostile.call()
            assert code in (*REFUSALS, grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED), f"{method}: {code}, {text}"
        elif kind == 11:
            junk = JUNK[list(JUNK)[self.done % len(JUNK)]]
            with connections(self.address, junk(np.random.default_rng(self.done))):
                pass
        else:
            stream = io.BytesIO()
            Image.fromarray(self.page[:, :, 0]).resize((900, 600)).save(stream, "PNG")
            assert client.score_map(stream.getvalue(), classes=[3]).scores.shape[2] == 1

    def refused(self, call) -> None:
        """Fail unless the call ends in one of our exceptions."""
        try:
            call()
        except ConvserveError:
            return
        raise AssertionError("a bad request was answered")

    def work(self, number: int) -> None:
        """Ask until the end; a new client every hundred requests."""
        random = np.random.default_rng(number)
        while time.monotonic() < self.end and not self.faults:
            own = [("grpc.use_local_subchannel_pool", 1)]
            with (
                convserve.Client(self.address, timeout=PATIENCE_S) as client,
                grpc.insecure_channel(self.address, own) as channel,
            ):
                hostile = Hostile(channel, seed=int(random.integers(1 << 32)))
                for _ in range(100):
                    kind = int(random.integers(13))
                    try:
                        self.ask(client, hostile, kind)
                    except Exception as error:
                        self.faults.append(f"request of kind {kind}: {type(error).__name__}: {error}")
                    with self.lock:
                        self.done += 1
                    if time.monotonic() > self.end or self.faults:
                        break


def soak(seconds: float, *, report: bool = False) -> tuple[int, int, list[str]]:
    """Run for that long; return requests made, growth of resident memory after the first fifth in bytes, and faults.

    Descriptors that stay open when all clients are gone are a fault.
    """
    model = convserve.load(BUNDLED / "digits.convserve")
    with running_server({"digits": model}) as address:
        state = Soak(address)
        before = settled(descriptors)
        state.end = time.monotonic() + seconds
        threads = [threading.Thread(target=state.work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 5)
        steady = resident_bytes()
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(5.0, seconds / 5))
            if report:
                grown = (resident_bytes() - steady) / 2**20
                print(f"{state.done:>8} requests, memory {grown:+.1f} MiB", flush=True)
        for thread in threads:
            thread.join()
        left = settled(descriptors, still_s=1, limit_s=30) - before
        if left > 8:
            state.faults.append(f"{left} descriptors are still open")
        return state.done, resident_bytes() - steady, state.faults


def main() -> None:
    """Soak for the time asked for; exit 1 where an answer was wrong or memory grew by more than 32 MiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long (default 600)")
    done, grown, faults = soak(parser.parse_args().seconds, report=True)
    print(f"{done} requests, memory {grown / 2**20:+.1f} MiB, {len(faults)} fault(s)", *faults, sep="\n")
    raise SystemExit(bool(faults) or grown > 32 << 20)


if __name__ == "__main__":
    main()
