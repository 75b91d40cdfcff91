"""Files of other formats, mapped as they are: their bytes, and whether somebody wrote to them since."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convserve.errors import ModelFormatError, ModelNotFoundError
from convserve.formats.mapping import Mapping

__all__ = ["MappedFiles"]


class MappedFiles:
    """The files that a network is read from."""

    def __init__(self) -> None:
        self.files: dict[str, os.stat_result] = {}
        """What was mapped: each file's path, and what the system said of it then."""
        self._mappings: dict[str, Mapping] = {}

    def map(self, path: Path) -> np.ndarray:
        """Return a file's bytes as mapped() does. Raises ModelNotFoundError, ModelFormatError if it is unreadable."""
        try:
            with path.open("rb") as stream:
                return self.mapped(stream, path)
        except FileNotFoundError:
            raise ModelNotFoundError(f"there is no file '{path}'") from None
        except OSError as error:
            raise ModelFormatError(f"'{path}' cannot be read: {error.strerror}") from error

    def mapped(self, stream: BinaryIO, path: Path) -> np.ndarray:
        """Return an open file's bytes, uint8, read-only: mapped, or read where it is no regular file."""
        status = os.fstat(stream.fileno())
        self.files[str(path)] = status
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return np.frombuffer(stream.read(), np.uint8)
        mapping = self._mappings[str(path)] = Mapping(stream.fileno())
        return np.frombuffer(memoryview(mapping), np.uint8)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError where a file was written to since it was mapped; a replaced one does no harm."""
        for path, mapping in self._mappings.items():
            if not mapping.is_intact:
                raise ModelFormatError(f"'{path}' was written to while it was read; load it again")
