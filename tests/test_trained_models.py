"""The trained networks of ../shared/data give what their MANIFEST says: "Shown by" 2."""

import gzip

import numpy as np
import pytest
from onnx_writer import runtime_session

import convserve
from convserve.model import Model

# MANIFEST: the classes that each photo should give, by their place in the ranking, with probabilities.
PHOTOS = {
    "kitten_224.png": [("tabby", 0.900), ("Egyptian cat", 0.077)],
    "dog_winml.jpg": [("golden retriever", 0.994)],
    "goldfish.jpg": [("goldfish", 0.997)],
    "wolves.jpg": [("white wolf", 0.962)],
    "triton_mug.jpg": [("coffee mug", 0.773), ("cup", 0.156)],
    "caffe_cat.jpg": [("tiger cat", 0.396), ("tabby", 0.393)],
}


@pytest.fixture(scope="module")
def squeezenet(shared_data) -> Model:
    return convserve.load(
        str(shared_data / "squeezenet/squeezenet1.1.onnx"),
        labels=str(shared_data / "squeezenet/synset.txt"),
        preprocess=convserve.Preprocess(resize=256, crop=224, channels="bgr", mean=(104, 117, 123)),
    )


@pytest.mark.parametrize("photo", PHOTOS)
def test_squeezenet_names_the_photo(squeezenet, shared_data, photo):
    found = squeezenet.classify(str(shared_data / "photos" / photo), top=5)
    assert len(found) == 5
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    for prediction, (label, probability) in zip(found, PHOTOS[photo], strict=False):
        names = prediction.label.split(" ", 1)[1].split(", ")
        assert names[0] == label
        assert abs(prediction.score - probability) <= 0.01


def test_squeezenet_agrees_with_onnx_runtime_on_the_photos(squeezenet, shared_data):
    session = runtime_session(str(shared_data / "squeezenet/squeezenet1.1.onnx"), threads=2)
    paths = [str(shared_data / "photos" / photo) for photo in PHOTOS]
    prepared = [squeezenet.preprocess.prepare(convserve.images.decode(path)) for path in paths]
    together = squeezenet.classify(paths, top=5)
    for image, predictions in zip(prepared, together, strict=True):
        x = squeezenet.preprocess.apply(image)
        expected = session.run(None, {"data_0": x})[0].ravel()
        got = squeezenet.run(x).ravel()
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert [p.index for p in predictions] == np.argsort(-expected, kind="stable")[:5].tolist()
        assert [p.score for p in predictions] == np.sort(got)[::-1][:5].tolist()


def digits(shared_data) -> tuple[np.ndarray, np.ndarray]:
    """Return MNIST's test digits, uint8 (10000, 1, 28, 28), and their labels."""
    with gzip.open(shared_data / "mnist/t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(shared_data / "mnist/t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    assert len(pixels) == len(labels) == 10_000
    return pixels, labels


@pytest.mark.parametrize(
    ("path", "scale", "right"), [("lenet/lenet.onnx", 1 / 256, 9905), ("mnist/mnist_ort.onnx", 1, 9891)]
)
def test_digits_that_are_read_right(shared_data, path, scale, right):
    pixels, labels = digits(shared_data)
    x = pixels.astype(np.float32) * np.float32(scale)
    model = convserve.load(str(shared_data / path))
    scores = model.run(x)
    assert scores.shape == (10_000, 10)
    assert (scores.argmax(axis=1) == labels).sum() == right


def test_digits_give_the_same_bits_one_by_one(shared_data):
    pixels, _ = digits(shared_data)
    x = pixels[:300].astype(np.float32) / np.float32(256)
    model = convserve.load(str(shared_data / "lenet/lenet.onnx"))
    together = model.run(x)
    assert np.array_equal(np.concatenate([model.run(x[i : i + 1]) for i in range(len(x))]), together)


@pytest.mark.parametrize("network", ["cifar10_quick", "resnet20"])
def test_cifar_answers_equal_onnx_runtime(shared_data, network):
    data = np.load(shared_data / "cifar10/first500.npz")
    if network == "cifar10_quick":
        rows = data["x"].astype(np.float32) - np.load(shared_data / "cifar10/train_mean_rgb_hwc_f32.npy")
    else:
        rows = (data["x"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = np.ascontiguousarray(rows.transpose(0, 3, 1, 2), dtype=np.float32)
    path = str(shared_data / f"cifar10/{network}.onnx")
    (expected,) = runtime_session(path, threads=2).run(None, {"data": x})
    got = convserve.load(path).run(x)
    assert got.shape == expected.shape == (500, 10)
    assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    right = (got.argmax(axis=1) == data["y"]).mean()
    assert right >= {"cifar10_quick": 0.75, "resnet20": 0.99}[network]


def test_cifar_mean_image_as_preprocessing(shared_data):
    data = np.load(shared_data / "cifar10/first500.npz")["x"][:8]
    mean = np.load(shared_data / "cifar10/train_mean_rgb_hwc_f32.npy")
    path = str(shared_data / "cifar10/cifar10_quick.onnx")
    model = convserve.load(path, preprocess=convserve.Preprocess(mean=mean))
    x = np.ascontiguousarray((data.astype(np.float32) - mean).transpose(0, 3, 1, 2))
    expected = convserve.load(path).run(x)
    for found, scores in zip(model.classify(list(data), top=10), expected, strict=True):
        np.testing.assert_allclose([p.score for p in found], np.sort(scores)[::-1], rtol=1e-5)
