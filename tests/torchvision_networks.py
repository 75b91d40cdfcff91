"""torchvision's own networks, with random parameters that keep activations near 1; needs PyTorch and torchvision."""

import math

import torch

__all__ = ["calibrated", "filled", "network", "unfilled"]

# several threads that find no processor wait for one another
torch.set_num_threads(1)
# torchvision from PyPI is built for CUDA: where PyTorch is not, these operators, which no network here has, are missing
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import models  # noqa: E402


def unfilled(name: str, **options: object) -> torch.nn.Module:
    """Return a network by torchvision's name, by default as it is without what only training needs."""
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False, **options}
    return models.get_model(name, weights=None, **options)


def network(name: str, **options: object) -> torch.nn.Module:
    """Return a network by torchvision's name, in eval mode, filled."""
    try:
        # without memory nothing is initialized, which takes seconds for VGG's large layers
        with torch.device("meta"):
            module = unfilled(name, **options).to_empty(device="cpu")
    except NotImplementedError:
        # RegNet computes its widths with tensors
        module = unfilled(name, **options)
    return filled(module.eval())


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Give a network random parameters and statistics that keep activations near 1, and return it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator)
    # the last normalization of a branch that is summed
    small = ("bn3" if any(key.endswith("bn3.weight") for key in module.state_dict()) else "bn2") + ".weight"
    for key, values in module.state_dict().items():
        part = key.rpartition(".")[2]
        drawn = noise.repeat(math.ceil(values.numel() / noise.numel()))[: values.numel()].view(values.shape)
        if values.ndim > 1:
            values.copy_(drawn * math.sqrt(2 / math.prod(values.shape[1:])))
        elif part == "num_batches_tracked":
            values.zero_()
        elif part in ("weight", "running_var"):
            values.copy_((1 + 0.1 * drawn).clamp(0.7, 1.3) * (0.2 if key.endswith(small) else 1))
        else:
            values.copy_(0.1 * drawn)
        noise = noise.roll(12345)
    return module


def calibrated(module: torch.nn.Module, side: int) -> torch.nn.Module:
    """Let the normalizations of a network in eval mode keep the statistics of noise of side x side, and return it."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        module(torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(1)))
    return module.eval()
