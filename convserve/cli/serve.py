"""convserve serve: answer for networks over gRPC."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.arguments import BUNDLED, add_command, open_net
from convserve.cli.output import print_json, size_text
from convserve.errors import InputError
from convserve.server.options import OPTIONS, PREFIX, Option, document, resolve

if TYPE_CHECKING:
    from convserve.model import Model
    from convserve.server.worker import Worker

__all__ = ["register", "run", "serve_networks"]

_WORKER = "convserve.cli.serve_worker"

# what --help shows together; what is in none of these comes last
_GROUPS = {
    "where it listens, who may call": ("host", "port", "http_port", "tls_cert", "tls_key", "tls_client_ca", "tokens"),
    "models": ("repository", "poll", "warm_up", "fit", "cache", "evict_weights"),
    "what it takes": ("memory_budget", "run_memory_budget", "max_message", "max_image", "stall_timeout"),
    "how it computes": ("workers", "max_running", "max_waiting", "threads", "max_batch", "max_delay"),
    "its log and its end": ("log_format", "log_calls", "grace"),
}


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
    parser.usage = "convserve serve [OPTION ...] [NET ...]"
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
    grouped = {name for names in _GROUPS.values() for name in names}
    others = tuple(name for name in OPTIONS if name not in grouped)
    for title, names in {**_GROUPS, "other settings": others}.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add(group, OPTIONS[name])
    parser.set_defaults(run=run)


def _add(parser: "argparse._ArgumentGroup", option: Option) -> None:
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
    options = {name: one.value for name, one in settings.items()}
    nets = args.nets or ([] if options["repository"] else [str(BUNDLED)])

    def tell(address: str, http_address: str, models: list[str]) -> None:
        budget = options["memory_budget"]
        if args.json:
            told = {"address": address, "http_address": http_address or None, "models": models}
            print_json({**told, "memory_budget": budget})
        else:
            within = "" if budget is None else f", within {size_text(budget)}"
            rest = f"; HTTP on {http_address}" if http_address else ""
            print(f"listening on {address} with {', '.join(models) or 'no model yet'}{within}{rest}", flush=True)

    if options["workers"] == 1:
        serve_networks(nets, options, on_start=tell)
    else:
        _supervise(nets, options, on_start=tell)


def _set_up_log(options: Mapping[str, Any], worker: int | None) -> None:
    from convserve.server.call_log import set_up_logging

    log_calls = options["log_calls"]
    is_json = options["log_format"] == "json"
    set_up_logging(
        log_format=options["log_format"], log_calls=is_json if log_calls is None else log_calls, worker=worker
    )


def _supervise(
    nets: Sequence[str], options: dict[str, Any], *, on_start: Callable[[str, str, list[str]], None]
) -> None:
    import asyncio

    from convserve.server.supervisor import Supervisor, divided

    _set_up_log(options, None)
    count = options["workers"]
    supervisor = Supervisor(
        # modules come from where this process has them, not from whatever folder it happens to be in
        [sys.executable, "-P", "-m", _WORKER],
        {"nets": list(nets), "options": divided(options, count)},
        count=count,
        host=options["host"],
        port=options["port"],
        http_port=options["http_port"],
        grace_s=options["grace"],
        poll_s=options["poll"],
    )
    asyncio.run(supervisor.run(on_start))


def serve_networks(
    nets: Sequence[str],
    options: Mapping[str, Any],
    *,
    on_start: Callable[[str, str, list[str]], None] | None = None,
    worker: "Worker | None" = None,
) -> None:
    """Load networks and serve them with a value for each of OPTIONS, until SIGTERM or SIGINT.

    on_start: called with host:port of gRPC and of HTTP, "" for none, and the models' names once the server listens.
    worker: one of several, which listens when its supervisor says so.
    """
    from convserve.server import Access, Certificates, Limits, ModelConfig, ModelFolder, Repository, serve, warm_up
    from convserve.server.tracing import tracing_to

    _set_up_log(options, None if worker is None else worker.number)
    limits = Limits(
        message_bytes=options["max_message"],
        image_bytes=options["max_image"],
        max_running=options["max_running"],
        max_waiting=options["max_waiting"],
        stall_s=options["stall_timeout"],
        max_batch=options["max_batch"],
        max_delay_s=options["max_delay"],
        memory_budget=options["memory_budget"],
    )
    if options["poll"] is not None and options["repository"] is None:
        raise InputError("--poll looks at a repository, but there is none; give --repository DIR")
    certificates = None
    if options["tls_cert"] or options["tls_key"] or options["tls_client_ca"]:
        if not (options["tls_cert"] and options["tls_key"]):
            raise InputError("TLS takes --tls-cert and --tls-key together, and --tls-client-ca only with them")
        certificates = Certificates(options["tls_cert"], options["tls_key"], options["tls_client_ca"])
    access = None if options["tokens"] is None else Access(options["tokens"])
    load_options = {name: options[name] for name in ("fit", "threads", "cache", "evict_weights")}
    load_options["memory_budget"] = options["run_memory_budget"]
    models: dict[str, Model] = {}
    for text in nets:
        name, path = _name_and_path(text)
        if name in models:
            raise InputError(f"two networks are called {name!r}; give one another name: NAME={path}")
        if Path(path).is_dir():
            raise InputError(f"{path!r} is a folder; a folder of models is served with --repository {path}")
        models[name] = open_net(path, **load_options)
        if options["warm_up"]:
            warm_up(models[name])

    folder = None
    if options["repository"]:
        folder = ModelFolder(options["repository"], ModelConfig(warm_up=options["warm_up"], **load_options))
    repository = Repository(models, folder) if worker is None else worker.repository(models, folder)

    def tell(address: str, http_address: str) -> None:
        if on_start is not None:
            on_start(address, http_address, repository.known)

    serve(
        repository,
        host=options["host"],
        port=options["port"],
        http_port=options["http_port"],
        limits=limits,
        grace_s=options["grace"],
        poll_s=options["poll"] if worker is None else None,
        certificates=certificates,
        access=access,
        tracing=None if options["traces"] is None else tracing_to(options["traces"]),
        on_start=tell,
        worker=worker,
    )


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        if not name or not path:
            raise InputError(f"{text!r} is no network; give NAME=NET, such as cats=squeezenet.onnx")
        return name, path
    return ("pattern" if "->" in text else Path(text).stem), text
