"""A worker process that serves nothing and does what a test wants: python worker_of_a_test.py MODE SOCKET.

MODE: "good"; "mute", which SIGTERM does not end; "dies", soon after it listens; "fails", which cannot begin.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import Any

from convserve.server.control import Control


async def main(mode: str, number: int) -> None:
    """Follow the supervisor until it has gone, or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set if mode != "mute" else lambda: None)

    async def begin(**told: Any) -> None:
        if mode == "fails":
            control.tell("failed", kind="ModelFormatError", text=f"number {told['number']} of {told['of']} cannot")
            loop.call_later(0.01, stop.set)
        else:
            control.tell("prepared")

    async def listen() -> dict[str, Any]:
        if mode == "dies":
            loop.call_later(0.01, os.kill, os.getpid(), signal.SIGKILL)
        return {"address": "nowhere:1", "http_address": "nowhere:2", "models": ["none"]}

    async def other(**_: Any) -> None:
        return

    control = Control({"begin": begin, "listen": listen, "hear": other, "refresh": other})
    await control.open(socket.socket(fileno=number))
    running = asyncio.create_task(control.run())
    if mode != "mute":
        running.add_done_callback(lambda _: stop.set())
    await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
