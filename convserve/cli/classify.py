"""convserve classify: the best classes of images, here or on a server."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, cast

from convserve.averaging import AVERAGES
from convserve.cli.arguments import add_command, add_run_options, add_where, count, load_net, remote_client
from convserve.cli.output import prediction_fields, prediction_lines, print_json, report_fields
from convserve.errors import InputError
from convserve.progress import ProgressBar
from convserve.results import Predictions

__all__ = ["register", "run"]

GROUP = 16
"""Images that are read and classified together."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "classify",
        help="print the best classes of images",
        example="convserve classify cat.jpg dog.jpg --net squeezenet.convserve --top 3\n"
        "convserve classify dog.jpg --net squeezenet.convserve --scales 256,384,512 --flip\n"
        "convserve classify digit.png --server localhost:8500 --json",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file: PNG, JPEG, TIFF, WebP, ...")
    parser.add_argument("--top", type=count, default=5, metavar="N", help="classes of each image (default 5)")
    parser.add_argument(
        "--scales",
        type=_scales,
        metavar="N,N,...",
        help="pixels of the short side, at each of which every position counts, e.g. 256,384,512",
    )
    parser.add_argument("--flip", action="store_true", help="count the mirror image as well")
    parser.add_argument(
        "--average", choices=AVERAGES, help="with --scales or --flip: after the softmax (default) or before it"
    )
    add_where(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Classify and print."""
    results = _results(args)
    if args.json:
        found = zip(args.images, results, strict=True)
        images = [
            {"image": image, "predictions": list(map(prediction_fields, one)), **report_fields(one.report)}
            for image, one in found
        ]
        print_json({"images": images})
        return
    for image, predictions in zip(args.images, results, strict=True):
        print("\n".join([image, *prediction_lines(predictions)]))


def _scales(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


def _results(args: argparse.Namespace) -> list[Predictions]:
    options: dict[str, Any] = {name: getattr(args, name) for name in ("top", "scales", "flip", "average")}
    if not args.server:
        model = load_net(args.net, args)
        return _in_groups(args, lambda images: cast(list[Predictions], model.classify(images, **options)))
    if args.memory_budget is not None:
        raise InputError("--memory-budget cannot be given together with --server, whose budget is its own")
    with remote_client(args) as client:
        asked = {"model": args.model, "version": args.model_version, **options}
        return _in_groups(args, lambda images: client.classify(images, **asked))


def _in_groups(
    args: argparse.Namespace, classify: Callable[[tuple[str, ...]], list[Predictions]]
) -> list[Predictions]:
    # a thousand photographs need not be in memory at once
    results: list[Predictions] = []
    progress = sys.stderr.isatty() and not args.json
    with ProgressBar("images", total=len(args.images), enabled=progress, unit="images") as bar:
        for begin in range(0, len(args.images), GROUP):
            images = tuple(args.images[begin : begin + GROUP])
            results += classify(images)
            bar.advance(len(images))
    return results
