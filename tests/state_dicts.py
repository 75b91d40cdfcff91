"""State dicts as PyTorch has them for the networks that are built in, without PyTorch."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from convserve.graph.assembly import Parameters, no_parameters, random_parameters
from convserve.graph.networks import network_graph

__all__ = ["saved", "state_dict"]

PYTORCH = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


def state_dict(
    network: str, *, classes: int | None = None, seed: int = 0, draw: Parameters | None = None
) -> dict[str, np.ndarray]:
    """Return the parameters that build(network, seed=seed) draws, by PyTorch's names, with counters of batches."""
    draw, state = draw or random_parameters(seed), {}

    def note(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        state[f"{layer}.{PYTORCH.get(parameter, parameter)}"] = draw(layer, parameter, shape, gain)
        if parameter == "var":
            state[f"{layer}.num_batches_tracked"] = np.array(7)
        return no_parameters(layer, parameter, shape, gain)

    network_graph(network, note, classes=classes)
    return state


def saved(folder: Path, state: dict[str, np.ndarray], name: str = "net.safetensors") -> Path:
    """Write a state dict and return its path."""
    path = folder / name
    save_file({key: np.require(array, requirements="C") for key, array in state.items()}, path)
    return path
