"""Reductions of score maps: against obvious NumPy, ties and NaN, blocks of any height, refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from convserve import Reduction
from convserve.errors import InputError
from convserve.reduction import checked_reduction

SCORES = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, np.nan, np.inf, -np.inf]),
)
MAPS = arrays.arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 2, st.integers(1, 9)), elements=SCORES)
ENOUGH = hypothesis_settings(deadline=None, max_examples=150)


def obvious_order(scores: np.ndarray) -> list[int]:
    """Places from the best to the worst: NaN before every number, the first of equal ones first."""
    numbers = np.where(np.isnan(scores), 0, scores)
    return sorted(range(len(scores)), key=lambda i: (not np.isnan(scores[i]), -numbers[i], i))


@given(MAPS, st.integers(1, 12), st.randoms(use_true_random=False))
@ENOUGH
def test_the_best_are_those_of_a_sort(scores: np.ndarray, top: int, random: Any) -> None:
    classes = random.sample(range(1000), scores.shape[2])
    found = Reduction(top=top).apply(scores, classes)
    kept = min(top, scores.shape[2])
    assert found["indices"].shape == found["scores"].shape == (*scores.shape[:2], kept)
    for place in np.ndindex(scores.shape[:2]):
        order = obvious_order(scores[place])[:kept]
        assert found["indices"][place].tolist() == [classes[i] for i in order]
        assert np.array_equal(found["scores"][place], scores[place][order], equal_nan=True)
    assert np.array_equal(Reduction(argmax=True).apply(scores, classes)["indices"], found["indices"][:, :, 0])


@given(MAPS, st.floats(-4, 4, width=32), st.floats(0.25, 8, width=32))
@ENOUGH
def test_numbers_are_rounded_as_said(scores: np.ndarray, low: float, span: float) -> None:
    classes = list(range(scores.shape[2]))
    with np.errstate(over="ignore", invalid="ignore"):
        half = Reduction(dtype="float16").apply(scores, classes)["scores"]
        assert np.array_equal(half, scores.astype(np.float16), equal_nan=True)
        found = Reduction(dtype="uint8", value_range=(low, low + span)).apply(scores, classes)["scores"]
        share = np.clip((scores.astype(np.float64) - low) / ((low + span) - low), 0, 1) * 255
        wanted = np.where(np.isnan(share), 0, np.round(share))
    assert found.dtype == np.uint8
    assert np.array_equal(found, wanted)


REDUCTIONS = [
    Reduction(),
    Reduction(argmax=True),
    Reduction(top=3),
    Reduction(top=2, dtype="float16"),
    Reduction(scores="softmax", dtype="uint8"),
]


@given(MAPS, st.sampled_from(REDUCTIONS), st.integers(1, 4), st.booleans())
@ENOUGH
def test_bits_do_not_depend_on_blocks(scores: np.ndarray, reduce: Reduction, height: int, strided: bool) -> None:
    classes = list(range(5, 5 + scores.shape[2]))
    whole = reduce.apply(scores, classes)
    assert [(name, array.dtype, array.shape[2:]) for name, array in whole.items()] == reduce.arrays(len(classes))
    positions = scores.shape[0] * scores.shape[1]
    assert sum(array.nbytes for array in whole.values()) == reduce.bytes_of(positions, len(classes))
    if strided:
        scores = np.repeat(scores, 2, axis=1)[:, ::2]
    blocks = [reduce.apply(scores[row : row + height], classes) for row in range(0, len(scores), height)]
    for name, array in whole.items():
        put_together = np.concatenate([block[name] for block in blocks])
        assert np.array_equal(put_together, array, equal_nan=array.dtype.kind == "f")


def test_many_positions_are_sorted_in_parts() -> None:
    scores = np.random.default_rng(0).integers(0, 50, (3, 77, 1000)).astype(np.float32)
    found = Reduction(top=7).apply(scores, list(range(1000)))
    assert np.array_equal(found["indices"], np.argsort(-scores, axis=2, kind="stable")[:, :, :7])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top is 0; it must be a whole number from 1"),
        ({"top": True}, "top is True"),
        ({"top": 2.0}, "top is 2.0"),
        ({"argmax": 1}, "argmax is 1; it must be True or False"),
        ({"argmax": True, "top": 3}, "argmax keeps no scores; it cannot be given together with top"),
        ({"argmax": True, "dtype": "float16"}, "argmax keeps no scores"),
        ({"scores": "logits"}, "scores is 'logits'; allowed: raw, softmax"),
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, float16, uint8"),
        ({"dtype": "uint8"}, r"raw scores have no range of their own: give value_range=\(low, high\)"),
        ({"dtype": "uint8", "value_range": (1, 1)}, r"value_range is \(1, 1\); it must be two finite numbers"),
        ({"dtype": "uint8", "value_range": (0, float("nan"))}, "two finite numbers"),
        ({"dtype": "uint8", "value_range": "01"}, "two finite numbers"),
        ({"value_range": (0, 1)}, "value_range goes with dtype uint8; dtype is float32"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reduction(**options)


def test_only_reductions_are_taken() -> None:
    assert checked_reduction(None) == Reduction()
    with pytest.raises(InputError, match=r"reduce is 'argmax'; it must be a convserve.Reduction"):
        checked_reduction("argmax")
