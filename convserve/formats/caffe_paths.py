"""Where the two files of a Caffe network lie; told by their names, so that neither is opened here."""

import os
from pathlib import Path

from convserve.errors import ModelFormatError, ModelNotFoundError

__all__ = ["is_caffe", "is_untrained", "weights_path"]

_NETWORK, _WEIGHTS = ".prototxt", ".caffemodel"


def is_caffe(network: str | os.PathLike[str]) -> bool:
    """Tell whether a path is that of a Caffe network: NAME.prototxt, perhaps with a further suffix.

    Raises ModelFormatError for the path of weights.
    """
    suffixes = Path(network).suffixes
    if _WEIGHTS in suffixes:
        raise ModelFormatError(
            f"'{os.fspath(network)}' holds the weights of a Caffe network; give its .prototxt as the network, and these"
            " as parameters"
        )
    return _NETWORK in suffixes


def _beside(network: str | os.PathLike[str]) -> Path:
    path = Path(network)
    return path.with_name(path.name.split(_NETWORK)[0] + _WEIGHTS)


def is_untrained(network: str | os.PathLike[str]) -> bool:
    """Tell whether a path is that of a Caffe network beside which no weights of its name lie."""
    return is_caffe(network) and not _beside(network).is_file()


def weights_path(network: str | os.PathLike[str], parameters: str | os.PathLike[str] | None) -> Path:
    """Return the weights of a Caffe network: those given, or NAME.caffemodel beside NAME.prototxt.

    Raises ModelNotFoundError where there are none.
    """
    if parameters is not None:
        return Path(parameters)
    if is_untrained(network):
        raise ModelNotFoundError(
            f"'{os.fspath(network)}' has no weights in it, and there is no '{_beside(network).name}' beside it: give"
            " its .caffemodel as parameters"
        )
    return _beside(network)
