"""convserve import: a network with labels and preprocessing into the native container."""

import argparse
from pathlib import Path
from typing import Any

from convserve.cli.arguments import add_command, add_fit, add_net, add_parameters, size_pair
from convserve.cli.output import print_json, size_text
from convserve.errors import InputError

__all__ = ["register", "run"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "import",
        help="write a network, its labels and preprocessing into one .convserve file",
        example="convserve import resnet50.onnx -o resnet50.convserve --labels imagenet.txt \\\n"
        "    --resize 256 --crop 224 --scale 0.003921568627 --mean .485,.456,.406 --std .229,.224,.225\n"
        "convserve import resnet50 --parameters resnet50.safetensors -o resnet50.convserve\n"
        "convserve import deploy.prototxt --parameters vgg16.caffemodel -o vgg16.convserve \\\n"
        "    --resize 256 --crop 224 --channels bgr --mean 103.939,116.779,123.68",
    )
    add_net(parser, required=True)
    parser.add_argument("-o", "--output", required=True, metavar="NET.convserve", help="the file to write")
    add_parameters(parser)
    parser.add_argument("--labels", metavar="FILE", help="text file with one label a line")
    parser.add_argument("--window", type=size_pair, metavar="HxW", help="input size, where the file leaves it open")
    add_fit(parser)
    parser.add_argument("--resize", type=_side_or_pair, metavar="N|HxW", help="short side or size before the crop")
    parser.add_argument("--crop", type=_side_or_pair, metavar="N|HxW", help="centre crop")
    parser.add_argument("--channels", choices=("rgb", "bgr", "gray"), help="order of the network's channels")
    parser.add_argument("--scale", type=float, metavar="F", help="factor of each byte, before mean and std (default 1)")
    parser.add_argument("--mean", type=_numbers, metavar="F,F,F", help="subtracted from each channel")
    parser.add_argument("--std", type=_numbers, metavar="F,F,F", help="divides each channel")
    parser.add_argument(
        "--algorithm",
        choices=("auto", "gemm"),
        default="auto",
        help="auto: beside the weights also those transformed for Winograd, where it is faster; gemm: without them",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="fp16, bf16: weights take half the bytes in the file and while they are read, and are rounded",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Import and print what was written."""
    from convserve.formats.packing import pack_node
    from convserve.formats.storage import rounding_error
    from convserve.images import Preprocess
    from convserve.loading import import_network

    if Path(args.output).suffix != ".convserve":
        raise InputError(f"the output file is {args.output!r}; its name must end in .convserve")
    names = ("resize", "crop", "channels", "scale", "mean", "std")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given:
        given.setdefault("channels", "rgb")
    preprocess = Preprocess(**given) if given else None
    model, read = import_network(
        args.net,
        args.output,
        parameters=args.parameters,
        preprocess=preprocess,
        labels=args.labels,
        algorithm=args.algorithm,
        weights=args.weights,
        fit=args.fit,
        window=args.window,
    )
    largest = relative = 0.0
    if args.weights != "fp32":
        largest, relative = rounding_error(map(pack_node, read.nodes), model.graph.nodes)
    size_bytes = Path(args.output).stat().st_size
    window = model.window and list(model.window)
    if args.json:
        document = {"output": args.output, "bytes": size_bytes, "window": window, "labels": len(model.labels or [])}
        rounding = {"weights": args.weights, "max_rounding": largest, "relative_rounding": relative}
        print_json(document | rounding)
        return
    place = f"{window[0]}x{window[1]}" if window else "any size"
    said = f"wrote {args.output}: {size_text(size_bytes)}, window {place}, {len(model.labels or [])} labels"
    if args.weights != "fp32":
        said += f", {args.weights} weights, rounded by at most {largest:.2g} and by {relative:.2g} of their size (rms)"
    print(said)


def _side_or_pair(text: str) -> int | tuple[int, int]:
    pair = size_pair(text)
    return pair if "x" in text else pair[0]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as .485,.456,.406") from None
