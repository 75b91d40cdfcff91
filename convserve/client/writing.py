"""From a source to a map on disk through a server: rows go there, and rows of scores come back."""

import os
from typing import TYPE_CHECKING, Any

from convserve.progress import ProgressBar
from convserve.reduction import Reduction
from convserve.results import PlanBytes, RunReport
from convserve.scenes import MapWriter, WrittenMap, scene_rows, shared_facts

if TYPE_CHECKING:
    from convserve.client.core import Core

__all__ = ["write_map"]


async def write_map(
    client: "Core",
    image: Any,
    output: str | os.PathLike[str],
    *,
    options: dict[str, Any],
    where: dict[str, Any],
    reduction: Reduction,
    resume: bool,
    progress: bool,
) -> WrittenMap:
    """Score the rows of an image that a map on disk lacks, write them as they come, and return the map.

    image: as open_scene takes it. options: of client.score_stream, that a call must share to go on with the map; where:
    its others. Raises what open_scene, MapWriter and score_stream
    raise.
    """
    asked = {name: where[name] for name in ("model", "version", "timeout")}
    described = await client.describe(fingerprint=True, **asked)
    with scene_rows(image) as source:
        facts = {"network": described["fingerprint"], **shared_facts(options, reduction)}
        with MapWriter(output, source, fingerprint=facts, reduction=reduction, resume=resume) as writer:
            if not writer.needs_rows:
                return writer.finish(RunReport(PlanBytes(), 0, 0.0))
            with ProgressBar("rows of scores", enabled=progress) as bar:
                part = source.below(writer.first_pixel)
                stream = await client.score_stream(part, reduce=reduction, **options, **where)
                try:
                    writer.begin(stream.geometry, described)
                    bar.total = writer.missing_rows
                    async for first, arrays in stream:
                        bar.advance(writer.add(first, arrays))
                finally:
                    stream.close()
            return writer.finish(stream.report)
