"""Reduced score maps: the whole map's values, the same bits by every way, through the server, and in their budget."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import PLACE, foreign_server
from runs import ISAS, settings
from serving import running_server

import convserve
from convserve import Reduction
from convserve.client import Client
from convserve.errors import InputError, MemoryBudgetError, RemoteError
from convserve.graph.ending import before_softmax, final_softmax, with_softmax
from convserve.images import decode
from convserve.plan.layout import Layout
from convserve.results import PlanBytes
from convserve.wire import codec
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveServicer

BUNDLED = Path(convserve.__file__).parent / "bundled"
PAGE = BUNDLED / "page.png"
REDUCTIONS = [
    Reduction(top=3),
    Reduction(top=100, dtype="float16"),
    Reduction(argmax=True),
    Reduction(scores="softmax", dtype="uint8"),
    Reduction(scores="softmax", top=2),
    Reduction(dtype="uint8", value_range=(0.25, 0.75)),
]


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(BUNDLED / "digits.convserve")


@pytest.fixture(scope="module")
def address(model: convserve.Model) -> Iterator[str]:
    with running_server({"digits": model, "logits": LOGITS}) as address:
        yield address


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    return np.ascontiguousarray(decode(PAGE, channels="gray")[:70, :90])


LOGITS = convserve.build(
    "INPUT[13x13x1] -> CONV5-5 S2 P0 -> RELU -> FC-7", labels=[f"class {number}" for number in range(7)], seed=3
)


def arrays_of(found: convserve.ScoreMap) -> dict[str, np.ndarray]:
    arrays = {} if found.reduction.argmax else {"scores": found.scores}
    return arrays if found.indices is None else {**arrays, "indices": found.indices}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in wanted.items()
    )


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=repr)
@pytest.mark.parametrize("classes", [None, [9, 2, 4, 0]])
def test_a_reduced_map_is_the_whole_one_reduced(
    model: convserve.Model, address: str, page: np.ndarray, reduce: Reduction, classes: list[int] | None
) -> None:
    # the bundled network ends in a softmax
    whole = model.score_map(page, classes=classes)
    wanted = reduce.apply(whole.scores, whole.classes)
    found = model.score_map(page, classes=classes, reduce=reduce)
    assert same(arrays_of(found), wanted)
    assert found.reduction == reduce
    held = sum(array.nbytes for array in wanted.values())
    assert held < found.plan.score_bytes < held + whole.scores.nbytes
    assert found.report.measured_bytes == found.plan.total_bytes
    for options in ({"stride": 2}, {"stride": (8, 4)}, {"method": "crops"}):
        every = model.score_map(page, classes=classes, **options).scores
        part = model.score_map(page, classes=classes, reduce=reduce, **options)
        assert same(arrays_of(part), reduce.apply(every, whole.classes)), options
    blocks = list(model.stream(width=90, rows=iter([page[:33], page[33:]]), classes=classes, reduce=reduce))
    assert same({name: np.concatenate([block[name] for block in blocks]) for name in wanted}, wanted)
    with Client(address) as client:
        far = client.score_map(page, model="digits", classes=classes, reduce=reduce)
        assert same(arrays_of(far), wanted)
        assert (far.classes, far.labels, far.reduction) == (whole.classes, whole.labels, reduce)
        rows = client.stream(width=90, rows=[page], model="digits", classes=classes, reduce=reduce, stride=2)
        blocks = list(rows)
        finer = model.score_map(page, classes=classes, reduce=reduce, stride=2)
        assert same({name: np.concatenate([block[name] for block in blocks]) for name in wanted}, arrays_of(finer))


def test_blocks_of_every_height_give_the_same_bits(page: np.ndarray) -> None:
    reduce = Reduction(scores="softmax", top=3, dtype="float16")
    wanted = arrays_of(LOGITS.score_map(page, reduce=reduce))
    for band in (1, 2, 3, 8, 50):
        stream = LOGITS.score_stream(page, scores="softmax", layout=Layout((), band))
        blocks = [reduce.apply(block.copy(), stream.geometry.classes) for _, block in stream]
        assert same({name: np.concatenate([block[name] for block in blocks]) for name in wanted}, wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_is_that_of_each_position_over_all_classes(page: np.ndarray, isa: str) -> None:
    with settings(ISA=isa):
        raw = LOGITS.score_map(page).scores.astype(np.float64)
        powers = np.exp(raw - raw.max(axis=2, keepdims=True))
        exact = powers / powers.sum(axis=2, keepdims=True)
        found = LOGITS.score_map(page, reduce=Reduction(scores="softmax")).scores
        assert found.dtype == np.float32
        assert np.abs(found - exact).max() < 1e-6
        kept = LOGITS.score_map(page, classes=[6, "class 1"], reduce=Reduction(scores="softmax"))
        assert np.array_equal(kept.scores, found[:, :, [6, 1]])


def test_softmax_bits_do_not_depend_on_the_method_or_the_side(page: np.ndarray, address: str) -> None:
    reduce = Reduction(scores="softmax")
    found = LOGITS.score_map(page, reduce=reduce, stride=1).scores
    assert np.array_equal(LOGITS.score_map(page, reduce=reduce, stride=1, method="crops").scores, found)
    with Client(address) as client:
        assert np.array_equal(client.score_map(page, model="logits", reduce=reduce, stride=1).scores, found)


def test_a_softmax_at_the_end_is_found_added_and_left_out() -> None:
    graph = LOGITS.graph
    assert final_softmax(graph) is None
    assert before_softmax(graph) is graph
    ended = with_softmax(graph)
    node = final_softmax(ended)
    assert node is not None
    assert with_softmax(ended) is ended
    assert before_softmax(ended).outputs == graph.outputs
    assert [one.name for one in before_softmax(ended).nodes] == [one.name for one in graph.nodes]
    ended.check()


def test_nan_is_the_best_and_is_seen(address: str) -> None:
    x = np.zeros((1, 1, 30, 30), np.float32)
    x[0, 0, 14, 14] = np.nan
    found = LOGITS.score_map(x, reduce=Reduction(top=2))
    assert found.indices is not None
    hidden = np.isnan(LOGITS.score_map(x).scores).all(axis=2)
    assert hidden.any()
    assert not hidden.all()
    assert np.array_equal(np.isnan(found.scores).all(axis=2), hidden)
    assert (found.indices[hidden] == [0, 1]).all()
    bytes_ = LOGITS.score_map(x, reduce=Reduction(scores="softmax", dtype="uint8")).scores
    assert (bytes_[hidden] == 0).all()
    with Client(address) as client:
        winners = client.score_map(x, model="logits", reduce=Reduction(argmax=True)).indices
    assert np.array_equal(winners, found.indices[:, :, 0])


def test_what_is_held_of_a_reduced_map_fits_a_budget_that_the_whole_one_does_not(model: convserve.Model) -> None:
    scene = np.zeros((900, 700, 1), np.uint8)
    budget = model.plan(900, 700, hold_scores=True).score_bytes
    with pytest.raises(MemoryBudgetError):
        model.score_map(scene, memory_budget=budget)
    found = model.score_map(scene, reduce=Reduction(argmax=True), memory_budget=budget)
    assert found.plan.total_bytes <= budget
    assert found.plan.score_bytes >= found.rows * found.cols * 4


@pytest.mark.parametrize(
    "reduce",
    [
        Reduction(),
        Reduction(top=3),
        Reduction(argmax=True),
        Reduction(dtype="float16"),
        Reduction(scores="softmax", dtype="uint8"),
        Reduction(scores="softmax"),
    ],
)
@pytest.mark.parametrize("classes", [None, [1], ["no digit", 3, 5, 7]])
def test_a_plan_knows_what_is_held_of_a_reduced_map(
    model: convserve.Model, address: str, reduce: Reduction, classes: Any
) -> None:
    kept: Any = {"classes": classes, "reduce": reduce}
    for height, width in ((300, 200), (28, 28)):
        found = model.score_map(np.zeros((height, width, 1), np.uint8), **kept).plan
        planned = model.plan(height, width, hold_scores=True, **kept)
        assert (planned.score_bytes, planned.total_bytes) == (found.score_bytes, found.total_bytes)
        with Client(address) as client:
            there = client.plan(height, width, hold_scores=True, model="digits", **kept)
        assert (there.score_bytes, there.total_bytes) == (found.score_bytes, found.total_bytes)
    assert model.plan(300, 200, **kept).score_bytes == 0


def test_labels_of_indices(model: convserve.Model, page: np.ndarray) -> None:
    found = model.score_map(page, classes=["3", 10], reduce=Reduction(argmax=True))
    assert found.scores.shape == (found.rows, found.cols, 0)
    assert found.indices is not None
    assert set(np.unique(found.indices)) <= {3, 10}
    assert (found.label_of(3), found.label_of(10)) == ("3", "no digit")
    with pytest.raises(InputError, match="the class 4 is none of the 2 that the map keeps"):
        found.label_of(4)


def test_what_cannot_be_meant_is_refused_on_both_sides(model: convserve.Model, address: str) -> None:
    wrong: Any = {"top": 3}
    with pytest.raises(InputError, match=r"reduce is \{'top': 3\}"):
        model.score_map(PAGE, reduce=wrong)
    with Client(address) as client:
        with pytest.raises(InputError, match=r"reduce is \{'top': 3\}"):
            client.score_map(PAGE, model="digits", reduce=wrong)
        with pytest.raises(InputError, match="class 'seven' is no label of the network"):
            client.score_map(PAGE, model="digits", classes=["seven"])


def test_a_server_that_does_not_reduce_is_found_out() -> None:
    class Old(ConvserveServicer):
        def ScoreMap(self, requests: Any, context: Any) -> Iterator[pb.ScoreMapResponse]:
            yield pb.ScoreMapResponse(geometry=codec.geometry_to_message(PLACE, PlanBytes(), model="m"))

    with foreign_server(Old()) as address, Client(address) as client, pytest.raises(RemoteError, match="older than"):
        client.score_map(PAGE, reduce=Reduction(scores="softmax"))
