"""convserve serve: answer for networks over gRPC."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import BUNDLED, add_command, open_net
from convserve.cli.output import print_json
from convserve.errors import InputError
from convserve.server.options import OPTIONS, PREFIX, Option, document, resolve

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
        "convserve serve --repository models --poll 10\n"
        "convserve serve --port 0     the bundled digits on a free port, which it prints",
    )
    parser.add_argument(
        "nets",
        nargs="*",
        metavar="NET",
        help="file, built-in network or pattern, or NAME=NET (default name: the file's; default: bundled digits)",
    )
    parser.add_argument(
        "--config", metavar="FILE.toml", help=f"settings, by the names of the flags below (or {PREFIX}CONFIG)"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every setting and where it comes from, and end"
    )
    for option in OPTIONS.values():
        _add(parser, option)
    parser.set_defaults(run=run)


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    default = "" if option.default is None else f" (default {option.default_text})"
    said = (option.help + default).replace("%", "%%")
    if option.metavar:
        parser.add_argument(option.flag, type=_typed(option), metavar=option.metavar, help=said)
    else:
        parser.add_argument(option.flag, action=argparse.BooleanOptionalAction, default=None, help=said)


def _typed(option: Option) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {error}") from None

    return parse


def run(args: argparse.Namespace) -> None:
    """Load the networks and serve them."""
    settings = resolve({name: getattr(args, name) for name in OPTIONS}, file=args.config)
    if args.print_config:
        if args.json:
            print_json({name: {"value": one.value, "source": one.source} for name, one in settings.items()})
        else:
            print(document(settings))
        return
    _serve(args, {name: one.value for name, one in settings.items()})


def _serve(args: argparse.Namespace, options: dict[str, Any]) -> None:
    from convserve.server import Access, Certificates, Limits, ModelConfig, ModelFolder, Repository, serve, warm_up
    from convserve.server.call_log import set_up_logging

    log_calls = options["log_calls"]
    is_json = options["log_format"] == "json"
    set_up_logging(log_format=options["log_format"], log_calls=is_json if log_calls is None else log_calls)
    limits = Limits(
        message_bytes=options["max_message"],
        image_bytes=options["max_image"],
        max_running=options["max_running"],
        max_waiting=options["max_waiting"],
        stall_s=options["stall_timeout"],
        max_batch=options["max_batch"],
        max_delay_s=options["max_delay"],
    )
    if options["poll"] is not None and options["repository"] is None:
        raise InputError("--poll looks at a repository, but there is none; give --repository DIR")
    certificates = None
    if options["tls_cert"] or options["tls_key"] or options["tls_client_ca"]:
        if not (options["tls_cert"] and options["tls_key"]):
            raise InputError("TLS takes --tls-cert and --tls-key together, and --tls-client-ca only with them")
        certificates = Certificates(options["tls_cert"], options["tls_key"], options["tls_client_ca"])
    access = None if options["tokens"] is None else Access(options["tokens"])
    load_options = {name: options[name] for name in ("fit", "threads", "memory_budget", "cache", "evict_weights")}
    models: dict[str, Model] = {}
    for text in args.nets or ([] if options["repository"] else [str(BUNDLED)]):
        name, path = _name_and_path(text)
        if name in models:
            raise InputError(f"two networks are called {name!r}; give one another name: NAME={path}")
        models[name] = open_net(path, **load_options)
        if options["warm_up"]:
            warm_up(models[name])

    def tell(address: str) -> None:
        if args.json:
            print_json({"address": address, "models": repository.known})
        else:
            print(f"listening on {address} with {', '.join(repository.known) or 'no model yet'}", flush=True)

    folder = None
    if options["repository"]:
        folder = ModelFolder(options["repository"], ModelConfig(warm_up=options["warm_up"], **load_options))
    repository = Repository(models, folder)
    serve(
        repository,
        host=options["host"],
        port=options["port"],
        limits=limits,
        grace_s=options["grace"],
        poll_s=options["poll"],
        certificates=certificates,
        access=access,
        on_start=tell,
    )


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, path
    return ("pattern" if "->" in text else Path(text).stem), text
