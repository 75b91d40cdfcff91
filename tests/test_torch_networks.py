"""The built-in networks against PyTorch's own, with the same random parameters."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from state_dicts import state_dict

import convserve
from convserve.formats.state_dict import state_dict_graph
from convserve.graph.assembly import no_parameters
from convserve.graph.networks import NETWORKS, PATTERNS

missing = [package for package in ("torch", "torchvision") if find_spec(package) is None]
if missing:
    pytest.skip(f"{' and '.join(missing)} not installed: make torch", allow_module_level=True)

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torchvision_networks import filled, network, unfilled  # noqa: E402

OWN = {"lenet", "alexnet", "zfnet"}
TORCHVISION = {name: name.removesuffix("-torchvision") for name in NETWORKS if name not in OWN}


class Parts(nn.Module):
    """Two sequences with the names of torchvision's sequential networks."""

    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def fully_connected(inputs: int, width: int = 4096) -> list[nn.Module]:
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU(), nn.Dropout()]
    return [*layers, nn.Linear(width, 1000)]


def own_network(name: str) -> nn.Module:
    """Return one of the networks that torchvision lacks, or has in another form."""

    def conv(inputs: int, filters: int, size: int, **options: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, filters, size, **options), nn.ReLU()]

    if name == "lenet":
        features = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
        return Parts(features, [nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)])
    if name == "alexnet":
        first = [*conv(3, 96, 11, stride=4), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
        second = [*conv(96, 256, 5, padding=2, groups=2), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
        third = [*conv(256, 384, 3, padding=1), *conv(384, 384, 3, padding=1, groups=2)]
        third += conv(384, 256, 3, padding=1, groups=2)
    else:
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        first = [*conv(3, 96, 7, stride=2, padding=1), pool, nn.LocalResponseNorm(5)]
        second = [*conv(96, 256, 5, stride=2), pool, nn.LocalResponseNorm(5)]
        third = [*conv(256, 384, 3, padding=1), *conv(384, 384, 3, padding=1), *conv(384, 256, 3, padding=1)]
    return Parts([*first, *second, *third, nn.MaxPool2d(3, 2)], fully_connected(9216))


def module_of(name: str) -> nn.Module:
    """Return a built-in network as PyTorch has it, without values yet."""
    with torch.device("meta"):
        return own_network(name) if name in OWN else unfilled(TORCHVISION[name])


class Held:
    """A state dict as PyTorch holds it, in the place of its file."""

    path = Path("held")

    def __init__(self, module: nn.Module) -> None:
        self._state = module.state_dict()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(a.shape) for name, a in self._state.items() if not name.endswith("num_batches_tracked")}

    def array(self, name: str) -> np.ndarray:
        return self._state[name].numpy()


def compare(model: convserve.Model, module: nn.Module, *, batch: int = 1, tolerance: float = 1e-4) -> None:
    """Assert that both answer the same, up to a share of the largest score."""
    volume = model.graph.input_volume
    x = torch.randn(batch, volume.channels, volume.height or 0, volume.width or 0, generator=torch.Generator())
    with torch.inference_mode():
        wanted = module.eval()(x).numpy()
    y = np.asarray(model.run(x.numpy()))
    assert y.shape == wanted.shape
    assert wanted.std() > 1e-3
    np.testing.assert_allclose(y, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_built_in_network_has_the_parameters_that_it_has_in_pytorch(name: str) -> None:
    shapes = {key: values.shape for key, values in state_dict(name, draw=no_parameters).items()}
    assert Held(module_of(name)).shapes == {key: shape for key, shape in shapes.items() if "num_batches" not in key}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_built_in_network_answers_as_in_pytorch(name: str) -> None:
    module, text = module_of(name), name
    if "FC-4096" in PATTERNS.get(name, ""):
        # all but the width of these layers is what it was, and so is nearly none of the time
        text = PATTERNS[name].replace("FC-4096", "FC-16")
        replace_linear(module.classifier)
    module = filled(module.to_empty(device="cpu").eval())
    state: Any = Held(module)
    compare(convserve.load(state_dict_graph(text, state), threads=1), module)


def replace_linear(classifier: nn.Sequential) -> None:
    inputs = 0
    for place, layer in enumerate(classifier):
        if isinstance(layer, nn.Linear):
            outputs = 1000 if layer.out_features == 1000 else 16
            classifier[place] = nn.Linear(inputs or layer.in_features, outputs, device="meta")
            inputs = outputs


@pytest.mark.parametrize(("dtype", "classes"), [(torch.float32, 7), (torch.float16, 3), (torch.bfloat16, 1000)])
def test_a_file_of_a_tuned_network_of_other_classes_and_types(dtype: torch.dtype, classes: int, tmp_path: Path) -> None:
    module = network("resnet18", num_classes=classes).to(dtype)
    path = tmp_path / "tuned.safetensors"
    save_file(nn.DataParallel(module).state_dict(), path)
    model = convserve.build("resnet18", parameters=path, threads=1)
    assert model.classes == classes
    compare(model, module.float(), batch=2)


def test_googlenet_comes_with_its_heads_for_training(tmp_path: Path) -> None:
    module = network("googlenet", aux_logits=True, num_classes=5)
    path = tmp_path / "googlenet.safetensors"
    save_file(module.state_dict(), path)
    compare(convserve.build("googlenet", parameters=path, threads=1), module)
