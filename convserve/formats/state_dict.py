"""A PyTorch state dict, saved as safetensors: its tensors as views of the mapped file, and a network made of them."""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from convserve.errors import ModelError, ModelFormatError, ModelNotFoundError
from convserve.formats.mapped import MappedFiles
from convserve.formats.pickles import refuse_pickle
from convserve.formats.storage import WEIGHT_TYPES, widened
from convserve.graph.assembly import no_parameters
from convserve.graph.ir import Graph
from convserve.graph.networks import NETWORKS, network_graph

__all__ = ["StateDict", "state_dict_graph"]

_TYPES = {"F32": WEIGHT_TYPES["fp32"], "F16": WEIGHT_TYPES["fp16"], "BF16": WEIGHT_TYPES["bf16"]}
# what DataParallel, torch.compile and training frameworks put before every name
_PREFIXES = ("module.", "model.", "_orig_mod.")
_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
_ONLY_TRAINED_WITH = {"googlenet": ("aux1.", "aux2.")}
_MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class StateDict(MappedFiles):
    """The tensors of one file by name, without a prefix that all names have."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map a file and check its header.

        Raises ModelNotFoundError where there is none, ModelFormatError for what is not in the safetensors format.
        """
        super().__init__()
        self.path = Path(path)
        what = f"'{self.path}'"
        if not self.path.exists():
            raise ModelNotFoundError(f"there is no file {what}")
        if not self.path.is_file():
            raise ModelFormatError(f"{what} is no file; parameters are read from one file in the safetensors format")
        refuse_pickle(self.path)
        try:
            with self.path.open("rb") as stream:
                self.content = self.mapped(stream, self.path)
            # the library checks the whole header; it would copy each tensor, and its NumPy side knows no bfloat16
            with safe_open(self.path, "numpy"):
                self._tensors = _tensors_of(self.content)
        except OSError as error:
            raise ModelFormatError(f"{what} cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise ModelFormatError(f"{what} is not in the safetensors format, or truncated: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{what} was written to while it was read; load it again") from error
        while prefix := _common_prefix(self._tensors):
            self._tensors = {name.removeprefix(prefix): tensor for name, tensor in self._tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, but for the counters of batches that normalizations keep while they are trained."""
        return {
            name: tensor.shape
            for name, tensor in self._tensors.items()
            if name.rpartition(".")[2] != "num_batches_tracked"
        }

    def array(self, name: str) -> np.ndarray:
        """Return a tensor as float32, a read-only view of the file where it is that; ModelFormatError for other types.

        float16 and bfloat16 are widened.
        """
        tensor = self._tensors[name]
        if tensor.dtype not in _TYPES:
            raise ModelFormatError(
                f"'{self.path}': the tensor '{name}' is {tensor.dtype}; allowed: F32, F16 and BF16"
            )
        stored = self.content[tensor.begin : tensor.end].view(_TYPES[tensor.dtype]).reshape(tensor.shape)
        return widened(np.require(stored, requirements="A"))

    def digest(self) -> bytes:
        """Return the SHA-256 of the file."""
        return hashlib.sha256(self.content.data).digest()


def _tensors_of(content: np.ndarray) -> dict[str, _Tensor]:
    begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:begin].tobytes())
    header.pop("__metadata__", None)
    return {
        name: _Tensor(entry["dtype"], tuple(entry["shape"]), *(begin + offset for offset in entry["data_offsets"]))
        for name, entry in header.items()
    }


def _common_prefix(names: Collection[str]) -> str:
    found = [prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)]
    return found[0] if found and names else ""


def state_dict_graph(network: str, state: StateDict, *, fit: str = "floor") -> Graph:
    """Return the graph of a built-in network or of a pattern, not rewritten yet, with parameters by PyTorch's names.

    A built-in network gets as many classes as the last layer's weight in the file has. Raises what network_graph does,
    and ModelError where the file does not hold just the parameters of the network, in their shapes.
    """
    found = state.shapes
    classes = None
    if network in NETWORKS:
        last = network_graph(network, no_parameters).nodes[-1]
        shape = found.get(f"{last.name}.weight", ())
        classes = shape[0] if len(shape) == 2 and shape[0] else None
    wanted: dict[str, tuple[int, ...]] = {}

    def ask(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        wanted[_name(layer, parameter)] = shape
        return no_parameters(layer, parameter, shape, gain)

    network_graph(network, ask, fit=fit, classes=classes)
    only_trained_with = _ONLY_TRAINED_WITH.get(network, ())
    wrong = _misfits(wanted, {name: shape for name, shape in found.items() if not name.startswith(only_trained_with)})
    if wrong:
        what = network if network in NETWORKS else "this pattern"
        raise ModelError(f"'{state.path}' is no state dict of {what}: {'; '.join(wrong)}")

    def read(layer: str, parameter: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
        return state.array(_name(layer, parameter))

    return network_graph(network, read, fit=fit, classes=classes)


def _name(layer: str, parameter: str) -> str:
    return f"{layer}.{_NAMES.get(parameter, parameter)}"


def _misfits(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    """Return what is wrong with the found tensors, in up to three clauses."""
    shapes = [
        f"{name} is {_size(found[name])} where {_size(shape)} is wanted"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    missing = [f"{name} ({_size(shape)})" for name, shape in wanted.items() if name not in found]
    unknown = [f"{name} ({_size(shape)})" for name, shape in found.items() if name not in wanted]
    clauses = (("it lacks ", missing), ("the network has no ", unknown), ("", shapes))
    return [start + _listed(names) for start, names in clauses if names]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one value"


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
