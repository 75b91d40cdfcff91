"""The bundled network: its size, its accuracy on held-out digits, and what it reads on the bundled page."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference import evaluate

import convserve
from convserve.formats.container import read_container
from convserve.formats.packing import unpack_graph
from convserve.images import Preprocess, decode
from convserve.images.peaks import find_peaks

BUNDLED = Path(convserve.__file__).parent / "bundled"
NETWORK = BUNDLED / "digits.convserve"
NO_DIGIT = 10


@pytest.fixture(scope="module")
def model() -> convserve.Model:
    return convserve.load(NETWORK)


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out digits, uint8 (n, 28, 28, 1), and their classes."""
    pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn, which is not installed")
    from training.digits import load, split

    images, classes = load()
    chosen = split(classes)[1]
    return images[chosen][..., None], classes[chosen]


def test_the_network_is_a_small_lenet_without_padding() -> None:
    assert NETWORK.stat().st_size <= 300_000
    container = read_container(NETWORK)
    graph = unpack_graph(container.graph)
    assert sum(array.size for node in graph.nodes for array in node.params.values()) <= 75_000
    assert [node.op for node in graph.nodes] == ["Conv", "MaxPool"] * 2 + ["Conv", "Conv", "Softmax"]
    assert all(node.attrs.get("pads", (0, 0, 0, 0)) == (0, 0, 0, 0) for node in graph.nodes)
    assert container.labels == [*"0123456789", "no digit"]
    assert Preprocess.from_dict(container.preprocess or {}).channels == "gray"


def test_the_held_out_split_is_a_fifth_of_each_class_and_never_changes() -> None:
    pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn, which is not installed")
    from training.digits import load, split

    classes = load()[1]
    training, chosen = split(classes)
    assert np.array_equal(np.sort(np.concatenate([training, chosen])), np.arange(1797))
    assert chosen.size == 359
    assert np.abs(np.bincount(classes[chosen]) - 0.2 * np.bincount(classes)).max() <= 0.5
    page = json.loads((BUNDLED / "page.json").read_text())
    assert {digit["index"] for digit in page["digits"]} <= set(chosen.tolist())


def test_held_out_accuracy_by_the_engine(model: convserve.Model, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, classes = held_out
    best = [found[0].index for found in model.classify(list(images), top=1)]
    assert np.mean(np.array(best) == classes) >= 0.97


def test_held_out_accuracy_by_the_formula(held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, classes = held_out
    container = read_container(NETWORK)
    preprocess = Preprocess.from_dict(container.preprocess or {})
    inputs = np.concatenate([preprocess.apply(image) for image in images])
    scores = evaluate(unpack_graph(container.graph), inputs)["probabilities"].reshape(len(images), -1)
    assert np.mean(scores.argmax(axis=1) == classes) >= 0.97


def test_the_sample_digit_is_a_three(model: convserve.Model) -> None:
    best = model.classify(BUNDLED / "digit.png", top=1)[0]
    assert best.label == "3"
    assert best.score > 0.9


def test_an_empty_field_has_no_digit(model: convserve.Model) -> None:
    assert model.classify(np.zeros((28, 28), np.uint8), top=1)[0].label == "no digit"


def test_the_page_s_score_map_reads_its_digits_and_nothing_between(model: convserve.Model) -> None:
    truth = json.loads((BUNDLED / "page.json").read_text())["digits"]
    found = model.score_map(BUNDLED / "page.png")
    winners, scores = found.scores.argmax(axis=2), found.scores.max(axis=2)
    peaks = find_peaks(winners, scores, distance=(3.5, 3.5), background=NO_DIGIT)
    read = {}
    for row, col in peaks:
        top, left, bottom, right = found.box(row, col)
        middle = np.array([(top + bottom) / 2, (left + right) / 2])
        nearest = min(truth, key=lambda digit: np.abs(middle - digit["centre"]).max())
        assert np.abs(middle - nearest["centre"]).max() <= 6, f"a digit is read at {middle}, where none is"
        read[nearest["index"]] = str(winners[row, col])
    assert len(peaks) == len(truth)
    assert read == {digit["index"]: digit["label"] for digit in truth}


def test_the_page_decodes_as_its_truth_says() -> None:
    truth = json.loads((BUNDLED / "page.json").read_text())
    page = decode(BUNDLED / "page.png", channels="gray")
    assert page.shape == (truth["height"], truth["width"], 1)
    for digit in truth["digits"]:
        y, x = digit["centre"]
        assert page[y - 10 : y + 10, x - 10 : x + 10].max() > 200
