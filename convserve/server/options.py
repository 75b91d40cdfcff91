"""Every setting of a server, once: its flag, its environment variable, its key in a file, default and help.

--max-message, CONVSERVE_SERVE_MAX_MESSAGE and max_message are one; the first that is given counts, in this order.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import InputError, SettingError
from convserve.server.limits import RANGES
from convserve.server.toml_file import nearest, read_toml
from convserve.settings import parse_bytes

__all__ = ["OPTIONS", "PREFIX", "Option", "Resolved", "document", "resolve"]

PREFIX = "CONVSERVE_SERVE_"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. parse: from the text of a flag or variable, or from a file's value; ValueError says what is allowed.

    metavar: what stands for its value in help; none: it is on or off.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Any
    help: str
    metavar: str = ""

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """Its default as a file has it, "unset" for none."""
        return "unset" if self.default is None else _toml(self, self.default)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.upper()


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setting's value, and where it came from: the flag's or variable's name, the file's, or "default"."""

    value: Any
    source: str


# ---- values


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text")
    return value


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(", ".join(allowed))
        return str(value)

    return parse


def _traces(value: Any) -> str:
    is_address = isinstance(value, str) and value.startswith(("http://", "https://")) and value.isprintable()
    if value != "console" and not is_address:
        raise ValueError('console, or the address of a collector such as "http://localhost:4318"')
    return str(value)


def _flag(value: Any) -> bool:
    known = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError("true, false")
    return known[value.lower()]


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[Any], Any]:
    what = "whole numbers" if kind is int else "numbers"
    allowed = f"{what} from {least:g} to {most:g}"

    def parse(value: Any) -> Any:
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not is_number and not (isinstance(value, str) and value.isascii()):
            raise ValueError(allowed)
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            raise ValueError(allowed) from None
        if not least <= number <= most:
            raise ValueError(allowed)
        return number

    return parse


def _bytes(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        allowed = f'{_size_text(least)} to {_size_text(most)}, as a number or a text such as "64MiB"'
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(allowed)
        try:
            size = parse_bytes(value)
        except SettingError:
            raise ValueError(allowed) from None
        if not least <= size <= most:
            raise ValueError(allowed)
        return size

    return parse


def _limit(name: str, kind: type[int] | type[float]) -> Callable[[Any], Any]:
    return _number(kind, *RANGES[name])


def _size_text(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


# ---- the table

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("host", _text, "127.0.0.1", "address to listen on; 127.0.0.1 is this machine alone", "ADDRESS"),
        Option("port", _number(int, 0, 65535), 8500, "port to listen on, 0 for a free one", "PORT"),
        Option(
            "http_port",
            _number(int, 0, 65535),
            None,
            "port of REST, /healthz and /metrics, 0 for a free one; unset: none",
            "PORT",
        ),
        Option(
            "repository",
            _text,
            None,
            "folder of models, DIR/NAME/VERSION/{model.onnx|model.convserve, config.toml, labels.txt}",
            "DIR",
        ),
        Option(
            "poll",
            _number(float, 0.1, 86400),
            None,
            "seconds between looks at the repository for what has changed; unset: only at SIGHUP",
            "S",
        ),
        Option("warm_up", _flag, True, "run each network once over zeros before it is served"),
        Option("tls_cert", _text, None, "certificate to speak TLS with, and its chain; reread on change", "FILE.pem"),
        Option("tls_key", _text, None, "key of that certificate", "FILE.pem"),
        Option(
            "tls_client_ca",
            _text,
            None,
            "roots of the clients' certificates: whoever has none may not connect (mutual TLS)",
            "FILE.pem",
        ),
        Option("tokens", _text, None, "clients, their tokens and rights; read again at SIGHUP", "FILE.toml"),
        Option("log_format", _choice("text", "json"), "text", "of the log: text, or json, an object a line", "FORMAT"),
        Option("log_calls", _flag, None, "one line a call in the log; unset: with log_format json"),
        Option("traces", _traces, None, "where calls leave traces: console, or an OpenTelemetry collector", "URL"),
        Option("max_message", _bytes(*map(int, RANGES["message_bytes"])), 64 << 20, "longest message", "BYTES"),
        Option("max_image", _bytes(*map(int, RANGES["image_bytes"])), 256 << 20, "longest image file", "BYTES"),
        Option(
            "workers",
            _number(int, 1, 256),
            1,
            "processes that serve on the one port, with the weights once in memory and the processors divided",
            "N",
        ),
        Option("max_running", _limit("max_running", int), 4, "runs that compute at the same time", "N"),
        Option(
            "max_waiting",
            _limit("max_waiting", int),
            64,
            "calls that wait beyond those; further ones are refused with RESOURCE_EXHAUSTED",
            "N",
        ),
        Option(
            "stall_timeout",
            _limit("stall_s", float),
            60.0,
            "seconds that a score map waits for its client to send or to read",
            "S",
        ),
        Option(
            "max_batch",
            _limit("max_batch", int),
            None,
            "images of several calls that run together at most, 1 to join none; unset: as many as pay, by model",
            "N",
        ),
        Option(
            "max_delay",
            _limit("max_delay_s", float),
            None,
            "seconds that a call waits for others to join it; unset: a fifth of a run, while others are about",
            "S",
        ),
        Option("grace", _number(float, 0, 86400), 30.0, "seconds that calls in work have to end after SIGTERM", "S"),
        Option("threads", _number(int, 1, 256), None, "threads of a run; unset: all of this process", "N"),
        Option(
            "memory_budget",
            _bytes(*map(int, RANGES["memory_budget"])),
            None,
            'anonymous memory of the whole server, such as "256MiB": calls reserve what they take, wait, run with'
            " smaller plans, or are refused; unset: no bound",
            "BYTES",
        ),
        Option(
            "run_memory_budget",
            _bytes(1, 1 << 50),
            None,
            'bytes for arena, scratch and held scores of each run, such as "64MiB"',
            "BYTES",
        ),
        Option(
            "fit",
            _choice("floor", "error", "pad", "crop"),
            "floor",
            "where strides do not fit a volume: round down, refuse, pad it, or crop it",
            "HOW",
        ),
        Option("cache", _flag, True, "map packed weights from the cache (convserve cache); off: private memory"),
        Option(
            "evict_weights",
            _flag,
            False,
            "release each layer's mapped weights after use: less resident memory, slower runs",
        ),
    )
}


# ---- where a value comes from


def _parsed(option: Option, value: Any, what: str, kind: type[InputError]) -> Any:
    try:
        return option.parse(value)
    except ValueError as error:
        raise kind(f"{what} is {value!r}; allowed: {error}") from None


def resolve(
    flags: Mapping[str, Any], *, file: str | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, Resolved]:
    """Return every setting: from the flags (by name, parsed; None: not given), the environment, the file, its default.

    file: default what CONVSERVE_SERVE_CONFIG names, if it does. Raises InputError or SettingError, which name the
    file and key or the variable, for values outside their range and for names that are none.
    """
    file = file or environ.get(PREFIX + "CONFIG") or None
    table = {} if file is None else read_toml(file, "the configuration")
    for key in table:
        if key not in OPTIONS:
            raise InputError(f"the configuration {file!r} has the key {key!r}, which is none{nearest(key, OPTIONS)}")
    variables = [option.variable for option in OPTIONS.values()]
    for name in environ:
        if name.startswith(PREFIX) and name not in (*variables, PREFIX + "CONFIG"):
            raise SettingError(f"the environment has {name}, which is no setting{nearest(name, variables)}")
    found = {}
    for name, option in OPTIONS.items():
        if flags.get(name) is not None:
            found[name] = Resolved(flags[name], option.flag)
        elif environ.get(option.variable, ""):
            value = _parsed(option, environ[option.variable], option.variable, SettingError)
            found[name] = Resolved(value, option.variable)
        elif name in table:
            said = f"the configuration {file!r}: {name}"
            found[name] = Resolved(_parsed(option, table[name], said, InputError), str(file))
        else:
            found[name] = Resolved(option.default, "default")
    return found


def document(settings: Mapping[str, Resolved]) -> str:
    """Return settings as a configuration file, each with its help and source; what is unset is a comment."""
    lines = []
    for name, resolved in settings.items():
        value = resolved.value
        lines.append(f"# {OPTIONS[name].help}")
        if value is None:
            lines.append(f"# {name} =  # {resolved.source}: unset")
        else:
            lines.append(f"{name} = {_toml(OPTIONS[name], value)}  # {resolved.source}")
    return "\n".join(lines)


def _toml(option: Option, value: Any) -> str:
    return json.dumps(_size_text(value) if option.metavar == "BYTES" else value, ensure_ascii=False)
