"""Folders of models as a server's repository has them, written by tests."""

import os
from pathlib import Path

import numpy as np
from builder import Builder

import convserve
from convserve.formats.container_writer import write_container
from convserve.graph.ir import Volume
from convserve.server import ModelFolder, Repository

BUNDLED = Path(convserve.__file__).parent / "bundled" / "digits.convserve"


def put_network(path: Path, *, seed: int = 0, filters: int = 2) -> Path:
    """Write a network over 8x8 RGB with three classes as a container; an existing file is replaced by renaming."""
    build = Builder(Volume(3, 8, 8), seed=seed, name="small")
    write_container(path, build.graph(build.conv(build.conv(build.input, filters, 3), 3, 6)))
    return path


def add_version(root: Path, name: str, version: int, *, seed: int = 0, filters: int = 2) -> Path:
    """Add a version of a small network; return its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    put_network(folder / "model.convserve", seed=seed, filters=filters)
    return folder


def put_garbage(path: Path) -> None:
    """Put a file that is no network in the place of a file, by renaming."""
    draft = path.with_name(".draft")
    draft.write_bytes(np.random.default_rng(0).bytes(5000))
    os.replace(draft, path)


def repository(root: Path) -> Repository:
    """A repository of a folder, loaded."""
    found = Repository(folder=ModelFolder(root))
    found.refresh()
    return found


def states(found: Repository) -> dict[str, str]:
    """The state of each "name/version"."""
    return {f"{one.name}/{one.version}": one.state for one in found.index()}
