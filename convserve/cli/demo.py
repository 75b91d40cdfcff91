"""convserve demo: a server on loopback, a digit classified, a page of digits scored, a picture written."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convserve.cli.arguments import BUNDLED, add_command
from convserve.cli.output import plan_fields, prediction_fields, print_json, size_text
from convserve.cli.score_map import save
from convserve.client import Client
from convserve.errors import ConvserveError, ServerUnavailable

__all__ = ["register", "run"]

_START_S = 60.0
_STOP_S = 30.0


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "demo",
        help="start a server with the bundled network, ask it about a digit and a page of digits, stop it",
        example="convserve demo --output demo-out",
    )
    parser.add_argument(
        "-o", "--output", default="demo-out", metavar="DIR", help="folder for page-scores.png (default demo-out)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Show the server's two methods on the bundled samples."""
    digit, page = BUNDLED.with_name("digit.png"), BUNDLED.with_name("page.png")
    picture = Path(args.output) / "page-scores.png"
    tell = (lambda *_: None) if args.json else print
    with _server() as address, Client(address, timeout=_START_S) as client:
        tell(f"server on {address} with the bundled network, a LeNet for handwritten digits")
        start = time.perf_counter()
        predictions = client.classify(digit, top=3)
        classify_s = time.perf_counter() - start
        others = ", ".join(f"{one.label} {one.score:.4f}" for one in predictions[1:])
        tell(f"Classify {digit.name}: {predictions[0].label}  score {predictions[0].score:.4f}  (then {others})")
        tell(f"  {classify_s * 1000:.1f} ms with the way there and back")
        found = client.score_map(page)
        positions = f"{found.rows}x{found.cols} positions of {len(found.classes)} classes"
        tell(f"ScoreMap {page.name}: {positions}, {found.exactness}")
        memory = f"arena {size_text(found.plan.arena_bytes)} + scratch {size_text(found.plan.scratch_bytes)}"
        tell(f"  {found.seconds * 1000:.1f} ms in {memory}; weights {size_text(found.plan.weight_bytes)}")
        picture.parent.mkdir(parents=True, exist_ok=True)
        save(found, page, picture, background="no digit")
        tell(f"  wrote {picture}")
    tell("server stopped")
    if args.json:
        print_json(
            {
                "predictions": list(map(prediction_fields, predictions)),
                "classify_seconds": classify_s,
                "rows": found.rows,
                "cols": found.cols,
                "score_map_seconds": found.seconds,
                "plan": plan_fields(found.plan),
                "picture": str(picture),
            }
        )


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ServerUnavailable(f"the server did not stop within {_STOP_S:.0f} s of SIGTERM") from None
    if code:
        raise ConvserveError(f"the server ended with exit code {code}")


def _address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        try:
            return str(json.loads(text)["address"])
        except json.JSONDecodeError:
            continue
    raise ServerUnavailable("the server ended before it listened; its message is above")
