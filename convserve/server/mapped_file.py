"""The file that a served model's weights are mapped from: whether somebody wrote to it, or cut it off, since."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["MappedFile"]


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A file as it was when it was mapped. Reading a mapping behind the end of its file ends the process."""

    path: str
    inode: int
    size: int
    written_ns: int

    @classmethod
    def of(cls, model: "Model") -> "MappedFile | None":
        """Return the file of a model that was just loaded; None where its weights take private memory."""
        if model.storage is None or model.storage.path is None:
            return None
        status = os.stat(model.storage.path)
        return cls(model.storage.path, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_intact(self) -> bool:
        """Tell whether the mapping still holds what was loaded; a file that was replaced or removed does no harm."""
        try:
            status = os.stat(self.path)
        except OSError:
            return True
        return status.st_ino != self.inode or (status.st_size, status.st_mtime_ns) == (self.size, self.written_ns)
