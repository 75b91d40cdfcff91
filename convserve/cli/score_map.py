"""convserve score-map: class scores at every window position of an image, as a picture or as arrays."""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from convserve.cli.arguments import (
    add_classes,
    add_command,
    add_reduction,
    add_run_options,
    add_where,
    count,
    load_net,
    reduction_of,
    remote_client,
)
from convserve.cli.output import print_json, report_fields, size_text
from convserve.errors import InputError
from convserve.reduction import Reduction
from convserve.results import ScoreMap
from convserve.scenes import ENDINGS, WrittenMap, is_scene, overview, scene_rows
from convserve.scenes.record import RecordFile

__all__ = ["register", "run", "save"]

PICTURES = (".png", ".jpg")


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "score-map",
        help="score every window of an image, to a picture (.png, .jpg) or arrays (.npy, .npz, .zarr, .tif)",
        example="convserve score-map street.jpg -o cats.png --net n.convserve --class tabby --contact-sheet best.png\n"
        "convserve score-map page.png -o page.npz --server localhost:8500 --top 5 --dtype float16\n"
        "convserve score-map scene.tif -o scene.zarr --net n.convserve --top 5 --resume",
    )
    parser.add_argument("image", metavar="IMAGE", help="image file, .npy or .zarr, as large as you like")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="where to write: a .png or .jpg, or arrays as .npy, .npz, .zarr or .tif, whose image is read by rows",
    )
    parser.add_argument("--resume", action="store_true", help="go on with arrays that were left half-way")
    add_classes(parser)
    parser.add_argument("--stride", type=count, metavar="N", help="pixels between positions (default: the network's)")
    parser.add_argument(
        "--method",
        choices=("auto", "shifted", "atrous", "crops", "crops-shared"),
        default="auto",
        help="a finer stride by shifted passes or dilated layers (default: the faster), or the network on every crop,"
        " sharing what neighbouring crops have in common or not",
    )
    parser.add_argument(
        "--edge",
        choices=("none", "pad", "align"),
        default="none",
        help="where windows do not fill the image: nothing (default), zeros, or the last windows moved to its end",
    )
    add_reduction(parser)
    _add_drawing(parser)
    add_where(parser, timeout=math.inf)
    add_run_options(parser)
    parser.set_defaults(run=run)


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--contact-sheet", metavar="FILE", help="also write a picture of the best positions, each with its crop"
    )
    parser.add_argument("--best", type=count, default=24, metavar="N", help="crops of the contact sheet (default 24)")
    parser.add_argument("--background", metavar="LABEL", help="class that pictures of several leave out")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="score from which pictures show a position (among several: 0.5)"
    )
    parser.add_argument("--opacity", type=float, default=0.6, metavar="X", help="of the colours, 0 to 1 (default 0.6)")
    parser.add_argument("--side", type=count, metavar="N", help="pixels of the picture's longer side")


def _reduction(args: argparse.Namespace) -> Reduction:
    instead: dict[str, Any] = {}
    if Path(args.output).suffix in PICTURES:
        if args.dtype != "uint8":
            # it is of the picture's scale
            instead["value_range"] = None
        if len(args.classes or ()) != 1 and not args.argmax and args.top is None:
            # what a picture shows of several classes
            instead |= {"top": 1, "scores": "softmax"}
    return reduction_of(args, **instead)


def run(args: argparse.Namespace) -> None:
    """Score, write the files, print what was done."""
    for path, allowed in ((args.output, (*PICTURES, *ENDINGS)), (args.contact_sheet, PICTURES)):
        if path is None:
            continue
        if Path(path).suffix not in allowed:
            raise InputError(f"the output file is {path!r}; its name must end in one of {', '.join(allowed)}")
        if not Path(path).parent.is_dir():
            raise InputError(f"the output file is {path!r}, but there is no such folder")
    if args.contact_sheet is not None and args.argmax:
        raise InputError("--contact-sheet shows the best scores, and --argmax keeps none; take --top 1")
    picture = Path(args.output).suffix in PICTURES
    if picture and args.resume:
        raise InputError("a picture is drawn from a whole map; --resume goes on with arrays, a .zarr for one")
    by_rows = picture and is_scene(args.image)
    try:
        found = _scored_by_rows(args) if by_rows else _score(args, output=None if picture else Path(args.output))
    except KeyboardInterrupt:
        if not picture and RecordFile(Path(args.output)).path.exists():
            print(f"convserve: interrupted; finished rows are in {args.output}, and --resume goes on", file=sys.stderr)
        raise
    drawing = {"background": args.background, "opacity": args.opacity, "side": args.side}
    if found.reduction.value_range is None and args.value_range is not None:
        drawing["value_range"] = tuple(args.value_range)
    if args.threshold is not None:
        drawing["threshold"] = args.threshold
    if args.contact_sheet is not None:
        from convserve.images.pictures import draw_best, save_picture

        limits = {"background": args.background, "threshold": args.threshold, "most": args.best}
        with scene_rows(args.image) as rows:
            save_picture(draw_best(found, rows, **limits), args.contact_sheet)
    image = args.image
    if by_rows:
        from convserve.images.heatmap import LONGEST_SIDE

        with scene_rows(args.image) as source:
            image, drawing["shrunk"] = overview(source, max(args.side or 0, LONGEST_SIDE))
    if picture:
        save(found, image, Path(args.output), **drawing)
    if args.json:
        print_json(
            {
                "output": args.output,
                "rows": found.rows,
                "cols": found.cols,
                "classes": len(found.classes),
                "arrays": {name: str(dtype) for name, dtype, _ in found.reduction.arrays(len(found.classes))},
                "stride": found.stride,
                "window": found.window,
                "offset": found.offset,
                "ring": found.ring,
                "covered": found.covered,
                "exactness": found.exactness,
                "method": found.method,
                "edge": found.edge,
                "resumed_at": getattr(found, "resumed_at", 0),
                **report_fields(found.report),
            }
        )
        return
    memory = found.plan.arena_bytes + found.plan.scratch_bytes
    print(f"{found.rows}x{found.cols} positions, {len(found.classes)} class(es), {found.exactness}")
    print(f"{found.seconds:.3f} s in {size_text(memory)} of arena and scratch")
    print("\n".join(f"wrote {path}" for path in (args.output, args.contact_sheet) if path is not None))


def _scored_by_rows(args: argparse.Namespace) -> ScoreMap:
    # neither the image is held, nor more of the map than the picture shows
    with tempfile.TemporaryDirectory(prefix="convserve-map-") as folder:
        found = _score(args, output=Path(folder) / "map.npy")
        return found.held() if isinstance(found, WrittenMap) else found


def _score(args: argparse.Namespace, *, output: Path | None) -> ScoreMap:
    options: dict[str, Any] = {
        "classes": args.classes,
        "stride": args.stride,
        "method": args.method,
        "edge": args.edge,
        "reduce": _reduction(args),
        "output": output,
        "resume": args.resume,
        "progress": sys.stderr.isatty() and not args.json,
    }
    if not args.server:
        return load_net(args.net, args).score_map(args.image, **options)
    with remote_client(args) as client:
        there: dict[str, Any] = {"model": args.model, "version": args.model_version}
        return client.score_map(args.image, memory_budget=args.memory_budget, **there, **options)


def save(found: ScoreMap, image: Any, path: Path, **drawing: Any) -> None:
    """Write a score map to a picture over the image.

    A picture of one class is a heat map; of several, each position has the colour of the class that wins.
    drawing: options of images.draw_map. Raises InputError for those that cannot be meant.
    """
    from convserve.images.pictures import draw_map, save_picture

    save_picture(draw_map(found, image, **drawing), path)
