"""config.toml of a server's models: what it changes, and how what is wrong in it is named."""

import tomllib
from pathlib import Path

import pytest
from model_folders import BUNDLED, add_version, repository, states

from convserve import errors
from convserve.server import ModelConfig
from convserve.server.repository import READY


def test_the_configuration_of_a_model_and_of_a_version(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "4"
    folder.mkdir(parents=True)
    (folder / "model.convserve").write_bytes(BUNDLED.read_bytes())
    labels = [f"class {number}" for number in range(11)]
    (tmp_path / "digits" / "labels.txt").write_text("\n".join(labels))
    (tmp_path / "digits" / "config.toml").write_text(
        'threads = 1\nmemory_budget = "3MiB"\nversions = "all"\n[preprocess]\nchannels = "gray"\nscale = 0.5\n'
    )
    (folder / "config.toml").write_text("memory_budget = 2097152\nalgorithm = 'gemm'\n")
    model = repository(tmp_path).model("digits").model
    assert model.memory_budget == 2 << 20
    assert model.labels == labels
    assert model.preprocess is not None
    assert (model.preprocess.scale, model.preprocess.channels) == (0.5, "gray")
    assert model.plan(28, 28).threads == 1
    assert model.algorithm == "gemm"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("treads = 2", "net/1/config.toml has the key 'treads', which is none; did you mean 'threads'?"),
        ("threads = 0", "net/1/config.toml, key 'threads': it is 0; allowed: whole numbers from 1 to 256"),
        ("threads = true", "key 'threads': it is True; allowed"),
        ("memory_budget = '64Mib'", ""),
        ("memory_budget = '64 parsecs'", "key 'memory_budget': it is '64 parsecs'; give bytes"),
        ("memory_budget = 1.5", "key 'memory_budget': it is 1.5; give bytes"),
        ("fit = 'round'", "key 'fit': it is 'round'; allowed: floor, error, pad, crop"),
        ("algorithm = 'fft'", "key 'algorithm': it is 'fft'; allowed: auto, gemm"),
        ("weights = ['fp32']", "key 'weights': it is ['fp32']; allowed: fp32, fp16, bf16"),
        ("window = [1, 2, 3]", "key 'window': it is [1, 2, 3]; allowed: one side, or [height, width]"),
        ("warm_up = 1", "key 'warm_up': it is 1; allowed: true, false"),
        ("labels = '../labels.txt'", "key 'labels': it is '../labels.txt'; allowed"),
        ("labels = 'names.txt'", "there is no file 'names.txt' for the labels of 'net'"),
        ("labels = ['a']", "there are 1 labels, but the network has 3 classes"),
        ("versions = 2", "net/1/config.toml has the key 'versions', which belongs into net/config.toml"),
        ("[preprocess]\nscal = 2.0", "key 'preprocess': it has the key 'scal', which is none; did you mean 'scale'?"),
        ("[preprocess]\nstd = 0.0", "key 'preprocess': std is 0.0; each value must be above 0"),
        ("preprocess = 3", "key 'preprocess': it is 3; it must be a table"),
        ("threads = ", "net/1/config.toml is no TOML"),
        ("[" * 3000, "net/1/config.toml is no TOML"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, said: str) -> None:
    folder = add_version(tmp_path, "net", 1)
    (folder / "config.toml").write_text(text + "\n")
    [state] = repository(tmp_path).index()
    assert said in state.reason
    assert (state.state == READY) == (not said)


@pytest.mark.parametrize("value", ["0", '"newest"', "[]", "[0]", "true", "[1.0]"])
def test_policies_that_are_none(tmp_path: Path, value: str) -> None:
    with pytest.raises(errors.InputError, match="config, key 'versions'"):
        ModelConfig().updated(tomllib.loads(f"versions = {value}"), "config")


def test_a_broken_configuration_leaves_what_is_served(tmp_path: Path) -> None:
    for version in (1, 2):
        add_version(tmp_path, "net", version)
    (tmp_path / "net" / "config.toml").write_text("versions = 'all'")
    found = repository(tmp_path)
    (tmp_path / "net" / "config.toml").write_text("versions = ")
    found.refresh()
    assert states(found) == {"net/2": READY, "net/1": READY}
    assert all("is no TOML" in one.reason for one in found.index())
