"""One worker process of convserve serve --workers: what it serves comes from its supervisor."""

import json
import signal
import socket
import sys
from contextlib import suppress

from convserve.cli.serve import serve_networks
from convserve.errors import ConvserveError
from convserve.server.worker import Worker

__all__ = ["main"]


def main(number: int) -> int:
    """Serve until the supervisor ends this process, or has gone; return the exit code.

    number: of the file descriptor of a socket to the supervisor, which first tells what to serve.
    """
    for one in (signal.SIGINT, signal.SIGHUP):
        # a terminal sends them to this process as well
        signal.signal(one, signal.SIG_IGN)
    end = socket.socket(fileno=number)
    end.set_inheritable(False)
    with end.makefile("rb") as lines:
        told = json.loads(lines.readline() or "null")
    if told is None:
        return 1
    begin = told["with"]
    worker = Worker(end, number=begin["number"], **begin["before"])
    try:
        serve_networks(begin["nets"], {**begin["options"], **begin["ports"]}, worker=worker)
    except (ConvserveError, OSError) as error:
        kind = type(error).__name__ if isinstance(error, ConvserveError) else ConvserveError.__name__
        failed = {"ask": None, "what": "failed", "with": {"kind": kind, "text": str(error)}}
        with end, suppress(OSError):
            end.sendall(json.dumps(failed).encode() + b"\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
