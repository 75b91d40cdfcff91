"""What the Open Inference Protocol asks of a server beside inference: metadata, configuration, statistics, index."""

from typing import TYPE_CHECKING, Any

from convserve import __version__
from convserve.graph.ops import output_shapes
from convserve.server.repository import READY, Repository, Served
from convserve.server.statistics import Duration, ModelCounts, Stages
from convserve.wire.infer import MOST_ELEMENTS
from convserve.wire.open_inference import messages as oip

if TYPE_CHECKING:
    from convserve.model import Model

__all__ = ["config_of", "index_of", "metadata_of", "server_metadata", "statistics_of"]

PLATFORM = "convserve"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)

_TYPE_FP32, _FORMAT_NCHW = 11, 2


def server_metadata() -> Any:
    """Return the server's name, version and the protocol's extensions that it has."""
    return oip.ServerMetadataResponse(name=PLATFORM, version=__version__, extensions=EXTENSIONS)


def _sizes(shape: "tuple[int | None, ...]") -> list[int]:
    return [-1 if size is None else size for size in shape]


def _input_sizes(model: "Model") -> list[int]:
    volume = model.graph.input_volume
    return _sizes((volume.channels, volume.height, volume.width))


def metadata_of(served: Served, repository: Repository) -> Any:
    """Return what a model reads and gives, the batch first, -1 for sizes that a request decides; its versions."""
    name, _, model = served
    versions = [one.version for one in repository.index() if one.name == name and one.state == READY]
    kind = oip.ModelMetadataResponse.TensorMetadata
    reads = kind(name=model.graph.input_name, datatype="FP32", shape=[-1, *_input_sizes(model)])
    gives = [
        kind(name=output, datatype="FP32", shape=[-1, *_sizes(shape)])
        for output, shape in output_shapes(model.graph).items()
    ]
    return oip.ModelMetadataResponse(name=name, versions=versions, platform=PLATFORM, inputs=[reads], outputs=gives)


def config_of(served: Served) -> Any:
    """Return the same without the batch, and in the parameters the forms in which images are taken."""
    name, _, model = served
    channels = model.graph.input_volume.channels
    forms = {"input_values": f"FP32 or FP16 [N, {channels}, H, W]"}
    if channels in (1, 3):
        forms |= {"input_pixels": "UINT8 [N, H, W, 1, 3 or 4]", "input_files": "BYTES [N]"}
    named = model.labels is not None
    return oip.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=MOST_ELEMENTS,
        input=[
            oip.ModelInput(
                name=model.graph.input_name, data_type=_TYPE_FP32, format=_FORMAT_NCHW, dims=_input_sizes(model)
            )
        ],
        output=[
            oip.ModelOutput(
                name=output,
                data_type=_TYPE_FP32,
                dims=_sizes(shape),
                label_filename="labels.txt" if named and number == 0 else "",
            )
            for number, (output, shape) in enumerate(output_shapes(model.graph).items())
        ],
        parameters={key: oip.ModelParameter(string_value=text) for key, text in forms.items()},
    )


def _duration(duration: Duration) -> Any:
    return oip.StatisticDuration(count=duration.count, ns=duration.ns)


def _stages(stages: Stages) -> dict[str, Any]:
    return {name: _duration(getattr(stages, name)) for name in ("compute_input", "compute_infer", "compute_output")}


def statistics_of(served: Served, counts: ModelCounts) -> Any:
    """Return the counts of one version of a model, and the bytes of its weights."""
    name, version, model = served
    memory = [] if model.storage is None else [oip.MemoryUsage(type="CPU", byte_size=model.storage.size_bytes)]
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=counts.last_ms,
        inference_count=counts.images,
        execution_count=counts.runs,
        inference_stats=oip.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            **_stages(counts.stages),
        ),
        batch_stats=[
            oip.InferBatchStatistics(batch_size=size, **_stages(stages))
            for size, stages in sorted(counts.batches.items())
        ],
        memory_usage=memory,
    )


def index_of(repository: Repository, *, ready: bool) -> Any:
    """Return the models and their states; ready: only those that answer."""
    kind = oip.RepositoryIndexResponse.ModelIndex
    return oip.RepositoryIndexResponse(
        models=[
            kind(name=one.name, version=one.version, state=one.state, reason=one.reason)
            for one in repository.index()
            if not ready or one.state == READY
        ]
    )
