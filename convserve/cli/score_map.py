"""convserve score-map: class scores at every window position of an image, as a picture or as arrays."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from convserve.cli.arguments import add_command, add_run_options, add_where, count, load_net, remote_client
from convserve.cli.output import print_json, report_fields, size_text
from convserve.errors import InputError
from convserve.results import ScoreMap

__all__ = ["register", "run", "save"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "score-map",
        help="score every window of an image, to a heat map (.png) or arrays (.npz)",
        example="convserve score-map street.jpg -o cats.png --net vgg16.convserve --class 'tabby, tabby cat'\n"
        "convserve score-map page.png -o page.npz --server localhost:8500",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file, as large as you like")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="where to write: .png or .npz")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="LABEL",
        help="class to keep (repeat for several; default all); a picture of one is a heat map, of several the winners",
    )
    parser.add_argument(
        "--class-index", dest="classes", action="append", type=int, metavar="N", help="the same, by its index from 0"
    )
    parser.add_argument("--background", metavar="LABEL", help="class that a picture of several leaves uncoloured")
    parser.add_argument("--stride", type=count, metavar="N", help="pixels between positions (default: the network's)")
    add_where(parser, timeout=math.inf)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Score, write the file, print what was done."""
    if Path(args.output).suffix not in (".png", ".npz"):
        raise InputError(f"the output file is {args.output!r}; its name must end in .png or .npz")
    if not Path(args.output).parent.is_dir():
        raise InputError(f"the output file is {args.output!r}, but there is no such folder")
    found = _score(args)
    save(found, args.image, Path(args.output), background=args.background)
    if args.json:
        print_json(
            {
                "output": args.output,
                "rows": found.rows,
                "cols": found.cols,
                "classes": len(found.classes),
                "stride": found.stride,
                "window": found.window,
                "offset": found.offset,
                "ring": found.ring,
                "covered": found.covered,
                "exactness": found.exactness,
                **report_fields(found.report),
            }
        )
        return
    memory = found.plan.arena_bytes + found.plan.scratch_bytes
    print(f"{found.rows}x{found.cols} positions, {len(found.classes)} class(es), {found.exactness}")
    print(f"{found.seconds:.3f} s in {size_text(memory)} of arena and scratch")
    print(f"wrote {args.output}")


def _score(args: argparse.Namespace) -> ScoreMap:
    progress = sys.stderr.isatty() and not args.json
    if not args.server:
        model = load_net(args.net, args)
        return model.score_map(args.image, classes=args.classes, stride=args.stride, progress=progress)
    with remote_client(args) as client:
        return client.score_map(
            args.image,
            model=args.model,
            stride=args.stride,
            classes=args.classes,
            memory_budget=args.memory_budget,
            progress=progress,
        )


def save(found: ScoreMap, image: Any, path: Path, *, background: str | None = None) -> None:
    """Write a score map to .npz (scores and geometry) or .png (over the image).

    A picture of one class is a heat map; of several, each position has the colour of the class that wins.
    background: label of a class that stays uncoloured. Raises InputError for a background that does not exist.
    """
    if path.suffix == ".npz":
        _save_arrays(found, path)
        return
    import numpy as np

    from convserve.images import argmax_map, decode, heat_map

    pixels = decode(image, channels="rgb")
    labels = found.labels or [str(index) for index in found.classes]
    place: dict[str, Any] = {"stride": found.stride, "window": found.window, "offset": found.offset}
    if len(labels) == 1:
        picture = heat_map(pixels, found.scores[:, :, 0], label=labels[0], **place)
    else:
        if background is not None and background not in labels:
            raise InputError(f"the background {background!r} is none of the classes: {', '.join(labels[:20])}")
        uncoloured = None if background is None else labels.index(background)
        shares = _shares(found.scores)
        winners = np.argmax(shares, axis=2)
        picture = argmax_map(pixels, winners, shares.max(axis=2), labels, background=uncoloured, **place)
    picture.save(path)


def _shares(scores: Any) -> Any:
    import numpy as np

    if np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1:
        return scores
    powers = np.exp(scores - scores.max(axis=2, keepdims=True))
    return powers / powers.sum(axis=2, keepdims=True)


def _save_arrays(found: ScoreMap, path: Path) -> None:
    import numpy as np

    np.savez(
        path,
        scores=found.scores,
        classes=np.asarray(found.classes, np.int64),
        labels=np.asarray(found.labels or [], np.str_),
        stride=np.asarray(found.stride, np.int64),
        window=np.asarray(found.window, np.int64),
        offset=np.asarray(found.offset, np.int64),
        ring=np.asarray(found.ring, np.int64),
        covered=np.asarray(found.covered, np.int64),
        exactness=np.asarray(found.exactness),
    )
