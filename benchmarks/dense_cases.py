"""What the dense benchmark measures: maps against crops, other strides, maps against the peers, scenes by rows."""

from dataclasses import dataclass

__all__ = ["FULL", "SHORT", "DenseCase"]

# Without padding; fully-connected layers take 8 % of the work of a position.
UNPADDED = (
    "INPUT[96x96x3] -> CONV5-32 S2 P0 -> RELU -> CONV3-48 P0 -> RELU -> POOL2 -> CONV3-64 P0 -> RELU"
    " -> CONV3-96 P0 -> RELU -> POOL2 -> CONV3-96 P0 -> RELU -> FC-12 -> RELU -> FC-10"
)
# Padded, with a window that is large beside what its convolutions see.
WIDE = (
    "INPUT[256x256x3] -> [CONV3-32 -> RELU]*2 -> POOL2 -> [CONV3-64 -> RELU]*2 -> POOL2 -> [CONV3-128 -> RELU]*2"
    " -> POOL2 -> CONV3-128 -> RELU -> POOL2 -> FC-10"
)
SMALL = "INPUT[32x32x3] -> CONV5-16 P0 -> RELU -> POOL2 -> CONV3-24 P0 -> RELU -> POOL2 -> CONV3-24 P0 -> RELU -> FC-10"


@dataclass(frozen=True, slots=True)
class DenseCase:
    """One comparison over a square image of so many pixels; the figure has to reach `least`, None: is only shown.

    kind: "crops" (the map against batches of `batch` crops), "ways" (à trous against shifted passes at `stride`, whose
    figure is also held against what the plan predicts), "shared" (crops against crops that share, the same held),
    "peers" (the map against the same network as a peer runs it) or
    "scene" (from a tiled TIFF to Zarr with the best 5: how often the anonymous memory of a process goes into 300 MiB).
    """

    key: str
    title: str
    kind: str
    network: str
    size: int
    least: float | None = None
    algorithm: str = "auto"
    batch: int = 36
    stride: int | None = None
    runs: int = 5


FULL = (
    DenseCase("crops-384", "VGG-16 at 384: 36 positions against 36 crops", "crops", "vgg16", 384, 9.0),
    DenseCase("crops-1024", "VGG-16 at 1024: 676 positions against crops", "crops", "vgg16", 1024, 16.0, runs=2),
    DenseCase(
        "crops-1024-gemm", "the same, both as GEMMs", "crops", "vgg16", 1024, 22.0, algorithm="gemm", runs=2
    ),
    DenseCase("ways", "an unpadded network at a quarter of its stride", "ways", UNPADDED, 512, 2.5, stride=2),
    DenseCase("ways-lenet", "LeNet at stride 1", "ways", "lenet", 512, stride=1),
    DenseCase("ways-alexnet", "AlexNet at stride 8", "ways", "alexnet", 512, stride=8, runs=3),
    DenseCase("ways-vgg16", "VGG-16 at stride 8", "ways", "vgg16", 512, stride=8, runs=1),
    DenseCase("shared-vgg16", "crops of VGG-16 from 448x448", "shared", "vgg16", 448, algorithm="gemm", runs=1),
    DenseCase("shared-winograd", "the same with Winograd", "shared", "vgg16", 448, runs=2),
    DenseCase("shared-wide", "crops of a padded network of 256x256", "shared", WIDE, 480, stride=16, runs=1),
    DenseCase("peers-1024", "VGG-16 at 1024 against the peers", "peers", "vgg16", 1024, 1.6),
    DenseCase("peers-2048", "VGG-16 at 2048 against the peers", "peers", "vgg16", 2048, 1.6, runs=3),
    DenseCase("scene", "AlexNet over 16384x16384, from TIFF to Zarr", "scene", "alexnet", 16384, 1.0),
)
SHORT = (
    DenseCase("crops", "a small network against its crops", "crops", SMALL, 64, 1.0, batch=9, runs=2),
    DenseCase("shared", "crops of a small padded network", "shared", WIDE, 288, stride=16, runs=1),
    DenseCase("ways", "a small network at a quarter of its stride", "ways", SMALL, 64, stride=1, runs=2),
    DenseCase("peers", "VGG-16 at 256 against the peers", "peers", "vgg16", 256, runs=1),
    DenseCase("scene", "LeNet over 1024x1024, from TIFF to Zarr", "scene", "lenet", 1024),
)
