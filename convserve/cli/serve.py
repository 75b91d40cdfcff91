"""convserve serve: answer for networks over gRPC."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import BUNDLED, add_command, add_run_options, byte_count, count, load_net
from convserve.cli.output import print_json
from convserve.errors import InputError

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        help="serve networks over gRPC until SIGTERM or Ctrl-C",
        example="convserve serve squeezenet.convserve vgg=vgg16.onnx --memory-budget 512MiB\n"
        "convserve serve --port 0     the bundled digits on a free port, which it prints",
    )
    parser.add_argument(
        "nets",
        nargs="*",
        metavar="NET",
        help="file, built-in network or pattern, or NAME=NET (default name: the file's; default: bundled digits)",
    )
    parser.add_argument(
        "--repository",
        metavar="DIR",
        help="folder of models, DIR/NAME/VERSION/{model.onnx|model.convserve, config.toml, labels.txt}",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8500, help="port to listen on, 0 for a free one (default 8500)")
    parser.add_argument(
        "--max-message", type=byte_count, default="64MiB", metavar="BYTES", help="longest message (default 64MiB)"
    )
    parser.add_argument(
        "--max-image", type=byte_count, default="256MiB", metavar="BYTES", help="longest image file (default 256MiB)"
    )
    parser.add_argument(
        "--workers", type=count, default=4, metavar="N", help="runs that compute at the same time (default 4)"
    )
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=64,
        metavar="N",
        help="calls that wait beyond those; further ones are refused with RESOURCE_EXHAUSTED (default 64)",
    )
    parser.add_argument(
        "--stall-timeout",
        type=float,
        default=60,
        metavar="S",
        help="seconds that a score map waits for its client to send or to read (default 60)",
    )
    parser.add_argument(
        "--max-batch",
        type=count,
        metavar="N",
        help="images of several calls that run together at most, 1 to join none (default: as many as pay, by model)",
    )
    parser.add_argument(
        "--max-delay",
        type=float,
        metavar="S",
        help="seconds that a call waits for others to join it (default: a tenth of a run, while others are about)",
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the networks and serve them."""
    from convserve.server import Limits, ModelConfig, ModelFolder, Repository, serve

    limits = Limits(
        message_bytes=args.max_message,
        image_bytes=args.max_image,
        workers=args.workers,
        max_waiting=args.max_waiting,
        stall_s=args.stall_timeout,
        max_batch=args.max_batch,
        max_delay_s=args.max_delay,
    )
    models: dict[str, Model] = {}
    for text in args.nets or ([] if args.repository else [str(BUNDLED)]):
        name, path = _name_and_path(text)
        if name in models:
            raise InputError(f"two networks are called {name!r}; give one another name: NAME={path}")
        models[name] = load_net(path, args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def tell(address: str) -> None:
        if args.json:
            print_json({"address": address, "models": repository.known})
        else:
            print(f"listening on {address} with {', '.join(repository.known) or 'no model yet'}", flush=True)

    folder = None
    if args.repository:
        defaults = ModelConfig(
            threads=args.threads,
            fit=args.fit,
            memory_budget=args.memory_budget,
            cache=not args.no_cache,
            evict_weights=args.evict_weights,
        )
        folder = ModelFolder(args.repository, defaults)
    repository = Repository(models, folder)
    serve(repository, host=args.host, port=args.port, limits=limits, on_start=tell)


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, path
    return ("pattern" if "->" in text else Path(text).stem), text
