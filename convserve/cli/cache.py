"""convserve cache: the packed forms of networks that were loaded or built: list them, remove them."""

import argparse
import time
from typing import Any

from convserve.cli.arguments import add_command
from convserve.cli.output import print_json, size_text

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "cache",
        help="list or clear the packed networks that loads map (limit: CONVSERVE_CACHE_BYTES)",
        example="convserve cache\nconvserve cache clear\nconvserve cache path",
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "clear", "path"), default="list", help="what to do (default list)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Do it, and print what is or was there."""
    from convserve.formats.cache import standard_cache

    cache = standard_cache()
    entries = cache.clear() if args.action == "clear" else cache.entries()
    size_bytes = sum(entry.size_bytes for entry in entries)
    if args.json:
        networks = [
            {"path": str(one.path), "bytes": one.size_bytes, "source": one.source, "used": one.used_s}
            for one in entries
        ]
        print_json({"path": str(cache.folder), "limit_bytes": cache.limit_bytes, "networks": networks})
    elif args.action == "path":
        print(cache.folder)
    elif args.action == "clear":
        print(f"removed {len(entries)} network(s), {size_text(size_bytes)}, from {cache.folder}")
    else:
        for one in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used_s))
            print(f"{size_text(one.size_bytes):>12}  {used}  {one.source}")
        limit = size_text(cache.limit_bytes)
        print(f"{len(entries)} network(s), {size_text(size_bytes)} of at most {limit}, in {cache.folder}")
