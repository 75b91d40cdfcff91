"""convserve health: ask a server whether it serves, as probes and scripts do."""

import argparse
import re
import time
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import add_command, add_tls, seconds
from convserve.cli.output import print_json
from convserve.errors import ConvserveError, InputError, RemoteError, ServerUnavailable

if TYPE_CHECKING:
    import grpc

__all__ = ["register", "run"]

PAUSE_S = 0.2


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "health",
        help="ask a server whether it serves, by grpc.health.v1; exit code 0 if it does, else 1",
        example="convserve health\n"
        "convserve health models.example:8500 --model squeezenet --tls\n"
        "convserve health localhost:8500 --wait 60     until it serves, for a minute at most",
    )
    parser.add_argument(
        "address", nargs="?", default="localhost:8500", metavar="HOST:PORT", help="default localhost:8500"
    )
    parser.add_argument("--model", default="", metavar="NAME", help="a model's health instead of the server's")
    parser.add_argument("--timeout", type=seconds, default=3.0, metavar="S", help="seconds for an answer (default 3)")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="S", help="ask again until it serves, so long")
    add_tls(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Ask and print; ServerUnavailable where it does not serve, RemoteError where it has no such model."""
    import grpc

    from convserve.client.transport import credentials

    if not re.search(r":\d{1,5}$", args.address):
        raise InputError(f"the address is {args.address!r}; it must be a host and a port, such as localhost:8500")
    secret = credentials(args.tls, args.certificate)
    # a channel that finds nobody would otherwise wait a second before it tries again
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    if secret is None:
        channel = grpc.insecure_channel(args.address, options)
    else:
        channel = grpc.secure_channel(args.address, secret, options)
    end = time.monotonic() + args.wait
    with channel:
        while (failure := _failure(channel, args)) is not None:
            if not isinstance(failure, ServerUnavailable) or time.monotonic() + PAUSE_S > end:
                raise failure
            time.sleep(PAUSE_S)
    if args.json:
        print_json({"address": args.address, "model": args.model or None, "status": "SERVING"})
    else:
        print(f"{args.model or args.address} is serving")


def _failure(channel: "grpc.Channel", args: argparse.Namespace) -> ConvserveError | None:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    what = f"the server at {args.address}"
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    try:
        answer = check(HealthCheckRequest(service=args.model), timeout=args.timeout)
    except grpc.RpcError as error:
        match error.code():
            case grpc.StatusCode.NOT_FOUND:
                return RemoteError(f"{what} has no model {args.model!r}")
            case grpc.StatusCode.UNIMPLEMENTED:
                return RemoteError(f"{what} does not offer grpc.health.v1")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return ServerUnavailable(f"{what} did not answer within {args.timeout:g} s")
        return ServerUnavailable(f"{what} cannot be reached: {error.details()}")
    status: str = HealthCheckResponse.ServingStatus.Name(answer.status)
    if status == "SERVING":
        return None
    return ServerUnavailable(f"{what} says {status}" + (f" of the model {args.model!r}" if args.model else ""))
