"""Classes by name: whole labels, one of their names, the nearest where there is none."""

import pytest

from convserve.dense import class_indices
from convserve.errors import InputError

LABELS = [
    "n02123045 tabby, tabby cat",
    "n02124075 Egyptian cat",
    "n02012849 crane",
    "n03126707 crane",
    "n02099601 golden retriever",
]


def test_names_find_their_label() -> None:
    assert class_indices(["tabby", "TABBY CAT", "n02123045 tabby, tabby cat"], 5, LABELS) == [0, 0, 0]
    assert class_indices(["egyptian cat", 4, "n03126707 crane"], 5, LABELS) == [1, 4, 3]
    assert class_indices(["tabby, tabby cat"], 5, LABELS) == [0]
    assert class_indices(["3", "b"], 2, ["b", "3"]) == [1, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tabbi", "class 'tabbi' is no label of the network, nor an index from 0 to 4; the nearest: 'n02123045 tabby"),
        ("retriever", "the nearest: 'n02099601 golden retriever'"),
        ("cat", "the nearest: 'n02"),
        ("crane", r"class 'crane' may be 'n02012849 crane' \(2\), 'n03126707 crane' \(3\): give the whole label, or"),
        ("zzz", "nor an index from 0 to 4$"),
        ("", "nor an index from 0 to 4$"),
    ],
)
def test_the_nearest_are_told_where_there_is_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_indices([name], 5, LABELS)


def test_what_is_no_class_is_refused() -> None:
    for wrong in (5, -1, 1.0, True):
        with pytest.raises(InputError, match="does not exist; the network has the indices 0 to 4, or its labels"):
            class_indices([wrong], 5, LABELS)  # type: ignore[list-item]
    with pytest.raises(InputError, match="indices 0 to 4, and no labels"):
        class_indices(["tabby"], 5, [])
    with pytest.raises(InputError, match="it must be a list"):
        class_indices("tabby", 5, LABELS)
