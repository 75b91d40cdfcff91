"""Trains the bundled LeNet on handwritten digits and writes convserve/bundled/digits.convserve."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.digits import LABELS, load, split
from training.fields import random_windows
from training.network import FC_UNITS, KERNEL, MAPS, write_network

__all__ = ["main"]

_SEED = 2310
_BATCH = 256


def lenet() -> nn.Sequential:
    """Return INPUT[28x28x1] -> [CONV5 -> RELU -> POOL2]*2 -> FC -> RELU -> FC, all without zero padding."""
    return nn.Sequential(
        nn.Conv2d(1, MAPS[0], KERNEL),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(MAPS[0], MAPS[1], KERNEL),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(MAPS[1] * 16, FC_UNITS),
        nn.ReLU(),
        nn.Linear(FC_UNITS, len(LABELS)),
    )


def train(fields: torch.Tensor, classes: torch.Tensor, steps: int) -> nn.Sequential:
    """Return a LeNet trained for some steps on random windows over the fields (n, 1, 28, 28)."""
    torch.manual_seed(_SEED)
    random = torch.Generator().manual_seed(_SEED)
    network = lenet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.02)
    begun = time.monotonic()
    for step in range(1, steps + 1):
        windows, labels = random_windows(fields, classes, _BATCH, random)
        answers = network(windows)
        loss = loss_of(answers, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            right = (answers.argmax(1) == labels).float().mean().item()
            seconds = time.monotonic() - begun
            print(f"step {step}: loss {loss.item():.4f}, right {right:.4f}, {seconds:.0f} s", flush=True)
    return network.eval()


def main() -> None:
    """Train, measure on the held-out digits, write the weights (.npz) and the native container."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000, help="batches of 256 windows (default 8000)")
    parser.add_argument("--weights", type=Path, default=Path("training/out/digits.npz"), help="where weights go")
    parser.add_argument("--output", type=Path, default=Path("convserve/bundled/digits.convserve"))
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    images, classes = load()
    training, held_out = split(classes)
    fields = torch.from_numpy(images).unsqueeze(1).float() / 255
    labels = torch.from_numpy(classes)
    network = train(fields[training], labels[training], arguments.steps)
    with torch.no_grad():
        right = (network(fields[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    print(f"held-out accuracy {right:.4f} on {held_out.size} digits")
    state = network.state_dict()
    weights = {
        f"{name}_{kind}": state[f"{index}.{kind}"].numpy()
        for name, index in (("conv1", 0), ("conv2", 3), ("fc1", 7), ("fc2", 9))
        for kind in ("weight", "bias")
    }
    arguments.weights.parent.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.weights, allow_pickle=False, **weights)
    write_network(weights, arguments.output)
    print(f"{sum(array.size for array in weights.values())} parameters written to {arguments.output}")


if __name__ == "__main__":
    main()
