"""Who may call: bearer tokens of a file, each with a client's name and rights.

    [clients.camera-7]
    token = "a text of 16 characters or more"      # or sha256 = "its SHA-256, in hexadecimal digits"
    rights = ["infer", "control"]                  # default: ["infer"]

"control" is loading and unloading models, "metrics" is /metrics, "infer" is everything else.
"""

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from convserve.errors import AuthenticationError, InputError, PermissionDeniedError
from convserve.server.toml_file import nearest, read_toml

__all__ = ["CONTROL", "INFER", "METRICS", "Access"]

INFER, CONTROL, METRICS = "infer", "control", "metrics"
_RIGHTS = (INFER, CONTROL, METRICS)
SHORTEST_TOKEN = 16
LONGEST_TOKEN = 4096

_OF_METHODS = {"RepositoryModelLoad": CONTROL, "RepositoryModelUnload": CONTROL, "Metrics": METRICS}
_KEYS = ("token", "sha256", "rights")
_NOBODY = bytes(32)

_log = logging.getLogger("convserve.server")


@dataclass(frozen=True, slots=True)
class _Client:
    name: str
    digest: bytes
    rights: frozenset[str]


class Access:
    """The clients of a tokens file, read again by reload()."""

    def __init__(self, path: str) -> None:
        """Raises InputError, which names the file and what is wrong in it."""
        self._path = path
        self._clients = _read(path)

    def reload(self) -> None:
        """Read the file again; one that is wrong is told in the log, and those of before stay."""
        try:
            self._clients = _read(self._path)
        except InputError as error:
            _log.error("%s; the tokens of before stay", error)
        else:
            _log.info("%d clients have tokens", len(self._clients))

    def client(self, metadata: Iterable[tuple[str, str | bytes]], method: str) -> str:
        """Return the name of the client whose token a call's metadata has.

        Raises AuthenticationError where there is none, or one of nobody; PermissionDeniedError where the client
        lacks the method's right. The time that it takes does not depend on which characters are right.
        """
        given = [value for key, value in metadata if key == "authorization"]
        if not given:
            raise AuthenticationError("the call has no token; send 'authorization: Bearer TOKEN'")
        text = given[0].encode() if isinstance(given[0], str) else given[0]
        scheme, _, token = text.partition(b" ")
        if len(given) > 1 or scheme.lower() != b"bearer" or len(token) > LONGEST_TOKEN:
            raise AuthenticationError("the call's authorization is no 'Bearer TOKEN'")
        digest = hashlib.sha256(token.strip()).digest()
        found = _Client("", _NOBODY, frozenset())
        for client in self._clients:
            if hmac.compare_digest(client.digest, digest):
                found = client
        if not found.name:
            raise AuthenticationError("the call's token is not known")
        right = _OF_METHODS.get(method.rpartition("/")[2], INFER)
        if right not in found.rights:
            raise PermissionDeniedError(f"the client {found.name!r} lacks the right {right!r}")
        return found.name


def _read(path: str) -> tuple[_Client, ...]:
    table = read_toml(path, "the tokens file")
    what = f"the tokens file {path!r}"
    clients: Any = table.pop("clients", None)
    if table or not isinstance(clients, dict) or not clients:
        raise InputError(f"{what} must have one table for each client, [clients.NAME], and nothing else")
    found = tuple(_client(name, entry, what) for name, entry in clients.items())
    if len({client.digest for client in found}) != len(found):
        raise InputError(f"{what}: two clients have the same token")
    if any("token" in entry for entry in clients.values()) and os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s has tokens in plain text, and others may read it: chmod 600, or sha256 instead", what)
    return found


def _client(name: str, entry: Any, what: str) -> _Client:
    said = f"{what}: the client {name[:100]!r}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{said} is {entry!r}; it must be a table with token or sha256, and rights")
    for key in entry:
        if key not in _KEYS:
            raise InputError(f"{said} has the key {key!r}, which is none{nearest(key, _KEYS)}")
    if not name or not name.isprintable() or ("token" in entry) == ("sha256" in entry):
        raise InputError(f"{said} must have a name, and either token or sha256")
    rights = entry.get("rights", [INFER])
    if not isinstance(rights, list) or not rights or not all(right in _RIGHTS for right in rights):
        raise InputError(f"{said} has the rights {rights!r}; allowed: a list of {', '.join(map(repr, _RIGHTS))}")
    return _Client(name, _digest(entry, said), frozenset(rights))


def _digest(entry: Mapping[str, Any], said: str) -> bytes:
    if "token" in entry:
        token = entry["token"]
        is_token = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
        if not is_token or not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
            # the token itself is not told
            raise InputError(f"{said}: a token has {SHORTEST_TOKEN} to {LONGEST_TOKEN} ASCII characters, no space")
        return hashlib.sha256(token.encode()).digest()
    text = entry["sha256"]
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise InputError(f"{said}: its sha256 must have 64 hexadecimal digits")
    return digest
