"""Classes by index or by name, and the nearest names where there is none."""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from convserve.errors import InputError

__all__ = ["class_indices", "label_index"]

# Labels of ImageNet begin with the number of their WordNet synset.
_SYNSET = re.compile(r"n\d{8}\s+")


def class_indices(classes: Sequence[int | str], count: int, labels: Sequence[str]) -> list[int]:
    """Return the indices of class indices and labels; InputError for one that a network of `count` has not.

    A name means what label_index finds by it. No more than `count` may be asked for.
    """
    if isinstance(classes, str) or not len(classes):
        raise InputError(f"classes is {classes!r}; it must be a list of class indices or labels")
    if len(classes) > count:
        raise InputError(f"{len(classes)} classes are asked for; the network has {count}")
    indices = []
    for wanted in classes:
        if isinstance(wanted, str) and labels:
            indices.append(label_index(wanted, labels))
        elif isinstance(wanted, int | np.integer) and not isinstance(wanted, bool) and 0 <= wanted < count:
            indices.append(int(wanted))
        else:
            raise InputError(
                f"class {wanted!r} does not exist; the network has the indices 0 to {count - 1}"
                + (", or its labels" if labels else ", and no labels")
            )
    return indices


def label_index(wanted: str, labels: Sequence[str]) -> int:
    """Return the index of a label, or of the only label that has the wanted name among its own.

    The names of "n02123045 tabby, tabby cat" are "tabby" and "tabby cat", in any case of letters. Raises InputError
    with the nearest names where there is none, and with all labels that have it where there are several.
    """
    if wanted in labels:
        return labels.index(wanted)
    names = [_names(label) for label in labels]
    name = wanted.strip().casefold()
    found = [index for index, own in enumerate(names) if name in own]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{labels[index]!r} ({index})" for index in found[:5])
        raise InputError(f"class {wanted!r} may be {several}: give the whole label, or the index")
    near = _nearest(name, names)
    hint = f"; the nearest: {', '.join(repr(labels[index]) for index in near)}" if near else ""
    raise InputError(f"class {wanted!r} is no label of the network, nor an index from 0 to {len(labels) - 1}{hint}")


def _names(label: str) -> list[str]:
    plain = _SYNSET.sub("", label, count=1).casefold()
    return [plain.strip(), *(part.strip() for part in plain.split(","))]


def _nearest(name: str, names: list[list[str]]) -> list[int]:
    # by the best of each label's names; what contains the wanted one is near as well
    every = {own: index for index in range(len(names) - 1, -1, -1) for own in names[index]}
    words = [own for own in every if name and name in own]
    close = difflib.get_close_matches(name, every, n=8, cutoff=0.6)
    return list(dict.fromkeys(every[own] for own in [*close, *words]))[:3]
