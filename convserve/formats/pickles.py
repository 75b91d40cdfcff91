"""Files that PyTorch pickled: known by how they begin, and refused, since reading one would run whatever it says."""

from pathlib import Path

from convserve.errors import ModelFormatError

__all__ = ["refuse_pickle"]

# how zip archives begin, as torch.save writes them, and the pickles that it wrote before
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def refuse_pickle(path: Path) -> None:
    """Raise ModelFormatError for a pickle, saying how its tensors are saved as safetensors."""
    try:
        with path.open("rb") as stream:
            begin = stream.read(4)
    except OSError:
        return
    if begin.startswith(_PICKLES):
        raise ModelFormatError(
            f"'{path}' is pickled, as torch.save writes files, and convserve opens no pickle; save it once more: "
            f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), '{path.stem}.safetensors')"
        )
