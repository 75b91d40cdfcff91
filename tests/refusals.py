"""What every test of a bad request asks: one clear sentence under the right status, and a server that goes on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from serving import image_requests, scores_of

import convserve
from convserve.wire import convserve_pb2 as pb
from convserve.wire.convserve_pb2_grpc import ConvserveStub

__all__ = ["DIGIT", "HUGE", "INVALID", "LIMITS", "NET", "PAGE", "check_that_it_goes_on", "refused"]

BUNDLED = Path(convserve.__file__).parent / "bundled"
NET = BUNDLED / "digits.convserve"
DIGIT, PAGE = (BUNDLED / "digit.png").read_bytes(), (BUNDLED / "page.png").read_bytes()
INVALID = grpc.StatusCode.INVALID_ARGUMENT
HUGE = (1 << 63) - 1
LIMITS = {"message_bytes": 2 << 20, "image_bytes": 1 << 20}


def refused(call: Callable[[], Any], code: grpc.StatusCode, *texts: str) -> None:
    """Check that a call fails with a status and with one line that has all of the texts."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    said = error.value.details()
    assert error.value.code() == code, said
    for text in texts:
        assert text in said
    assert said
    assert said == said.strip()
    assert "\n" not in said
    assert "Traceback" not in said


def check_that_it_goes_on(stub: ConvserveStub, model: convserve.Model) -> None:
    """Check that a server of the bundled network answers a classification and a score map, rightly."""
    response = stub.Classify(pb.ClassifyRequest(images=[pb.Image(encoded=DIGIT)], top=1), timeout=20)
    assert response.classifications[0].predictions[0].label == "3"
    pixels = np.asarray(Image.open(io.BytesIO(DIGIT)).convert("L"))[:, :, None]
    expected = model.score_map(pixels).scores.tobytes()
    assert scores_of(list(stub.ScoreMap(image_requests(DIGIT), timeout=20))) == expected
