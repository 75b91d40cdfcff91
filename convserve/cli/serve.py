"""convserve serve: answer Classify and ScoreMap over gRPC."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import BUNDLED, add_command, add_run_options, byte_count, load_net
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
        "nets", nargs="*", metavar="NET", help="file, or NAME=FILE (default name: the file's; default: bundled digits)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8500, help="port to listen on, 0 for a free one (default 8500)")
    parser.add_argument(
        "--max-message", type=byte_count, default=64 << 20, metavar="BYTES", help="longest request (default 64MiB)"
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the networks and serve them."""
    from convserve.server import Repository, serve

    models: dict[str, Model] = {}
    for text in args.nets or [str(BUNDLED)]:
        name, path = _name_and_path(text)
        if name in models:
            raise InputError(f"two networks are called {name!r}; give one another name: NAME={path}")
        models[name] = load_net(path, args)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def tell(address: str) -> None:
        if args.json:
            print_json({"address": address, "models": list(models)})
        else:
            print(f"listening on {address} with {', '.join(models)}", flush=True)

    repository = Repository(dict(models))
    serve(repository, host=args.host, port=args.port, message_bytes=args.max_message, on_start=tell)


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, path
    return Path(text).stem, text
