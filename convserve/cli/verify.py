"""convserve verify: a dense pass against the network on every crop, or a network against its original."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convserve.cli.agreement import verify_against
from convserve.cli.arguments import add_command, add_net, add_run_options, count, load_net
from convserve.cli.output import print_json
from convserve.errors import ConvserveError, InputError

if TYPE_CHECKING:
    import numpy as np

    from convserve.results import ScoreMap

__all__ = ["compare", "register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "verify",
        help="compare a dense pass over images with the network on every crop; exit code 1 if an exact network differs."
        " With --against, compare the scores of two forms of one network",
        example="convserve verify lenet.onnx page.png\n"
        "convserve verify vgg16.onnx street.jpg --stride 16 --plot difference.png\n"
        "convserve verify vgg16-fp16.convserve --against vgg16.onnx cat.jpg dog.jpg",
    )
    add_net(parser, required=True)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file, at least as large as the window")
    parser.add_argument("--stride", type=count, metavar="N", help="pixels between positions (default: the network's)")
    parser.add_argument(
        "--method",
        default="auto",
        help="how the dense pass is computed: auto (default), shifted or atrous; or crops-shared, against crops",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw each position's largest difference over the image")
    parser.add_argument(
        "--against",
        metavar="NET",
        help="compare with this one, the ONNX file or a float32 container: on the images, as NET preprocesses them,"
        " or on random inputs",
    )
    parser.add_argument(
        "--random", type=count, default=10, metavar="N", help="inputs with --against and no image (default 10)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random inputs (default 0)")
    add_run_options(parser)
    parser.set_defaults(run=run, wrong_usage=parser.error)


def run(args: argparse.Namespace) -> None:
    """Compare, print, draw; ConvserveError where an exact network's bits differ from its crops'."""
    if args.against:
        verify_against(args, load_net(args.net, args))
        return
    if not args.images:
        args.wrong_usage("an IMAGE is required, or --against NET")
    if args.plot and (len(args.images) > 1 or Path(args.plot).suffix != ".png"):
        raise InputError(f"--plot {args.plot!r} must be one .png file, for one image; there are {len(args.images)}")
    if args.method == "crops":
        raise InputError("--method crops is what the others are compared with; give another one")
    model = load_net(args.net, args)
    progress = sys.stderr.isatty() and not args.json
    reports = []
    for image in args.images:
        dense = model.score_map(image, stride=args.stride, method=args.method, progress=progress)
        crops = model.score_map(image, stride=dense.stride, method="crops", progress=progress)
        report = {"image": image, "algorithm": model.algorithm, **compare(dense, crops)}
        reports.append(report)
        if not args.json:
            print(_text(report), flush=True)
        if args.plot:
            _draw(image, dense, crops, Path(args.plot))
            if not args.json:
                print(f"wrote {args.plot}")
    if args.json:
        print_json({"network": model.name, "images": reports})
    broken = [report["image"] for report in reports if _is_promised(report) and not report["same_bits"]]
    if broken:
        raise ConvserveError(f"{model.name} is exact, but its dense pass differs from its crops on {', '.join(broken)}")


def _is_promised(report: dict[str, Any]) -> bool:
    # crops that share run layers as GEMMs that Winograd's algorithm runs in others
    rounded = report["method"] == "crops-shared" and report["algorithm"] == "winograd"
    return report["exactness"] == "exact" and not rounded


def compare(dense: "ScoreMap", crops: "ScoreMap") -> dict[str, Any]:
    """Return how two maps of one geometry differ, as JSON; a difference that is no finite number is None."""
    import numpy as np

    differences = _differences(dense, crops)
    per_position = differences.max(axis=2)
    row, col = (int(index) for index in np.unravel_index(np.argmax(per_position), per_position.shape))
    same = dense.scores.view(np.uint32) == crops.scores.view(np.uint32)
    agreeing = dense.scores.argmax(axis=2) == crops.scores.argmax(axis=2)
    return {
        "rows": dense.rows,
        "cols": dense.cols,
        "positions": dense.rows * dense.cols,
        "classes": len(dense.classes),
        "stride": dense.stride,
        "exactness": dense.exactness,
        "method": dense.method,
        "ring": dense.ring,
        "same_bits": bool(same.all()),
        "same_bits_positions": int(same.all(axis=2).sum()),
        "max_difference": _finite(differences.max()),
        "mean_difference": _finite(differences.mean(dtype=np.float64)),
        "max_difference_at": [row, col],
        "max_difference_box": dense.box(row, col),
        "top1_agreement": float(agreeing.mean()),
        "dense_seconds": dense.seconds,
        "crops_seconds": crops.seconds,
    }


def _differences(dense: "ScoreMap", crops: "ScoreMap") -> "np.ndarray":
    import numpy as np

    both_nan = np.isnan(dense.scores) & np.isnan(crops.scores)
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(dense.scores - crops.scores)
    differences[both_nan | (dense.scores == crops.scores)] = 0
    differences[np.isnan(differences)] = np.inf
    return differences


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _text(report: dict[str, Any]) -> str:
    promise = {
        "exact": (
            "every score is promised the bits of its crop's"
            if _is_promised(report)
            else "every score is its crop's, up to the rounding of Winograd's algorithm"
        ),
        "interior-exact": "crops see zeros where the dense pass sees pixels; no equality is promised",
        "padded": "crops see zeros where the dense pass sees pixels; no equality is promised",
    }[report["exactness"]]
    equal, positions = report["same_bits_positions"], report["positions"]
    bits = "all bits agree" if report["same_bits"] else f"bits agree at {equal:,} of {positions:,} positions"
    largest, mean = (
        "not finite" if value is None else f"{value:.3g}"
        for value in (report["max_difference"], report["mean_difference"])
    )
    row, col = report["max_difference_at"]
    where = "" if report["same_bits"] else f" (largest at row {row}, column {col})"
    return "\n".join(
        (
            report["image"],
            f"  {report['rows']}x{report['cols']} = {positions:,} positions of {report['classes']} class(es)"
            f" at stride {'x'.join(map(str, report['stride']))}, {report['method']}",
            f"  {report['exactness']}: {promise}",
            f"  {bits}; difference: max {largest}, mean {mean}{where}",
            f"  the same best class at {100 * report['top1_agreement']:.2f} % of the positions",
            f"  dense {report['dense_seconds']:.3f} s, crops {report['crops_seconds']:.3f} s",
        )
    )


def _draw(image: str, dense: "ScoreMap", crops: "ScoreMap", path: Path) -> None:
    from convserve.images import decode, heat_map

    largest = _differences(dense, crops).max(axis=2)
    heat_map(
        decode(image, channels="rgb"),
        largest,
        stride=dense.stride,
        window=dense.window,
        offset=dense.offset,
        label="largest difference of dense and crops",
    ).save(path)
