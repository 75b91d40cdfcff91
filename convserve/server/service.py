"""The Convserve service: decode the request, run the model outside the event loop, encode what comes."""

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, cast

import grpc
import numpy as np

from convserve.errors import InputError
from convserve.results import Prediction
from convserve.server.repository import Repository
from convserve.wire import codec, convserve_pb2_grpc
from convserve.wire import convserve_pb2 as pb

if TYPE_CHECKING:
    from convserve.dense import ScoreStream
    from convserve.model import Model

__all__ = ["MOST_IMAGES", "ConvserveService"]

MOST_IMAGES = 1024
"""Images that one Classify request may hold."""

DEFAULT_TOP = 5

Blocks = Generator[tuple[int, np.ndarray], None, None]


class ConvserveService(convserve_pb2_grpc.ConvserveServicer):  # type: ignore[misc]
    """Answers Classify and ScoreMap from the models of a repository; runs take the threads of `pool`."""

    def __init__(self, repository: Repository, pool: Executor) -> None:
        self._repository = repository
        self._pool = pool

    async def Classify(
        self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ClassifyResponse:
        """Answer with the best classes of each image."""
        if not 1 <= len(request.images) <= MOST_IMAGES:
            raise InputError(f"the request has {len(request.images)} images; allowed: 1 to {MOST_IMAGES}")
        name, model = self._repository.model(request.model)
        return await asyncio.wrap_future(self._pool.submit(_classify, name, model, request))

    async def ScoreMap(
        self, request: pb.ScoreMapRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Write geometry, rows as they become final, and completion.

        The next block is computed while the last is written, and no further one: a slow reader holds the run back.
        """
        name, model = self._repository.model(request.header.model)
        start = time.perf_counter()
        stream = await asyncio.wrap_future(self._pool.submit(_open, model, request))
        geometry = codec.geometry_to_message(stream.geometry, stream.plan, model=name)
        await context.write(pb.ScoreMapResponse(geometry=geometry))
        blocks = cast(Blocks, iter(stream))
        ahead = self._pool.submit(_next_block, blocks)
        try:
            while messages := await asyncio.wrap_future(ahead):
                ahead = self._pool.submit(_next_block, blocks)
                for message in messages:
                    await context.write(message)
        finally:
            stream.close()
            ahead.add_done_callback(lambda _: blocks.close())
        await context.write(pb.ScoreMapResponse(completion=pb.Completion(seconds=time.perf_counter() - start)))


def _classify(name: str, model: "Model", request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    start = time.perf_counter()
    images = [codec.image_from_message(image) for image in request.images]
    classified = cast(list[list[Prediction]], model.classify(images, top=request.top or DEFAULT_TOP))
    seconds = time.perf_counter() - start
    plan = codec.plan_to_message(model.plan(*model.window)) if model.window is not None else None
    return pb.ClassifyResponse(
        model=name,
        classifications=[codec.classification_to_message(predictions) for predictions in classified],
        plan=plan,
        seconds=seconds,
    )


def _open(model: "Model", request: pb.ScoreMapRequest) -> "ScoreStream":
    if request.WhichOneof("content") != "image":
        raise InputError("the request has no image")
    image = codec.image_from_message(request.image)
    return model.score_stream(image, classes=codec.classes_from_message(request.header.classes))


def _next_block(blocks: Blocks) -> list[pb.ScoreMapResponse]:
    # encoded here, outside the event loop, and before the iteration may touch the array again
    for first_row, scores in blocks:
        return [pb.ScoreMapResponse(rows=rows) for rows in codec.rows_to_messages(first_row, scores)]
    return []
