"""Loading: from an ONNX file, a native container or a graph to a Model; building: from a name or a pattern."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from convserve.errors import InputError, ModelFormatError, ModelNotFoundError
from convserve.formats.algorithms import without_winograd
from convserve.formats.caffe_paths import is_caffe, weights_path
from convserve.formats.container import Container, is_container, read_container
from convserve.formats.container_writer import hold_container, write_container
from convserve.formats.conversion import Form, file_container, held_container, text_container
from convserve.formats.packing import Packing
from convserve.formats.pickles import refuse_pickle
from convserve.formats.storage import weights_of
from convserve.graph.assembly import random_parameters
from convserve.graph.ir import Graph
from convserve.graph.networks import NETWORKS, is_network, network_graph
from convserve.graph.rewrites import REWRITTEN_AWAY
from convserve.images.preprocess import Preprocess
from convserve.model import Model
from convserve.results import Storage
from convserve.settings import parse_budget

if TYPE_CHECKING:
    from convserve.formats.caffe import CaffeFiles
    from convserve.formats.onnx import OnnxFile
    from convserve.formats.state_dict import StateDict

__all__ = ["build", "import_network", "is_network", "load"]


def load(
    source: str | os.PathLike[str] | bytes | Graph,
    *,
    parameters: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    algorithm: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    fit: str = "floor",
    memory_budget: int | str | None = None,
    window: tuple[int, int] | None = None,
    cache: bool = True,
    evict_weights: bool = False,
) -> Model:
    """Return the Model of an ONNX file, a Caffe network, a native container (memory-mapped), ONNX bytes or a Graph.

    parameters: the .caffemodel of a .prototxt; default NAME.caffemodel beside NAME.prototxt.
    preprocess, labels: what classify and score_map do to images and call classes (labels: a list, or a text
    file with one a line); default what the container holds. algorithm: "auto" or "gemm". weights: what they
    are stored as, "fp32", "fp16" or "bf16", rounded once and widened as they are read; default as the file has them
    (a container's become a private copy where it has them otherwise). threads: default CONVSERVE_THREADS, else all
    this process may use. fit: where strides do not fit, (W - F + 2P)/S not whole: "floor", as ONNX rounds; "error"
    refuses the network; "pad" adds zeros at the bottom and right of the layer's input, "crop" cuts rows and columns off
    there, so that its last window is whole. A container keeps what it was imported with.
    memory_budget: bytes or a text such as "64MiB" for arena, scratch and held scores of each run.
    window: (height, width) for an ONNX file that leaves its input size open. cache: pack an ONNX file or a Caffe
    network once, into $XDG_CACHE_HOME/convserve, and map that; without, or where that folder cannot be written, its
    weights take private memory. model.storage says where they lie. evict_weights: release the pages of a layer's
    weights from the process once a run has used them, so that about the largest layer is resident; each run maps them
    anew.
    Raises ModelNotFoundError, ModelFormatError, UnsupportedOpError, InputError, MemoryBudgetError, and ModelError for
    a weight that is too large for its type.
    """
    form = Form(algorithm, weights, fit, window)
    _check_threads(threads)
    budget = parse_budget(memory_budget)
    name, because = "", ""
    if isinstance(source, Graph | bytes) or not is_caffe(source):
        _refuse_parameters(parameters)
    if isinstance(source, Graph):
        container, because = held_container(form.rewritten(source), form), "given as a graph"
    elif isinstance(source, bytes):
        container, because = held_container(_read_onnx(_onnx_file(source), form), form), "given as bytes"
    else:
        name = _existing(source).stem
        if is_caffe(source):
            container, because = _opened_caffe(source, parameters, form, cache=cache)
        elif is_container(source):
            container, because = _opened_container(source, form, weights)
        else:
            container, because = _opened_onnx(source, form, cache=cache)
    return _model(
        container,
        because,
        name=name,
        preprocess=preprocess,
        labels=labels,
        algorithm=algorithm,
        threads=threads,
        memory_budget=budget,
        evict_weights=evict_weights,
    )


def build(
    network: str,
    *,
    seed: int = 0,
    parameters: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    algorithm: str = "auto",
    weights: str | None = None,
    threads: int | None = None,
    fit: str = "floor",
    memory_budget: int | str | None = None,
    cache: bool = True,
    evict_weights: bool = False,
) -> Model:
    """Return the Model of a built-in network or of a pattern, trained, or with random weights to plan and measure it.

    network: a name ("lenet", "alexnet", "zfnet", "googlenet", "vgg16", "resnet50", ...: graph.networks.NETWORKS), the
    path of a Caffe network's .prototxt, or a pattern INPUT[HxWxD] -> layer -> ... Layers: CONV3-64 (window, filters;
    options S stride, P padding, D dilation, G groups; padding keeps the size unless P or a stride says otherwise),
    LOCAL3-64 (unshared filters), POOL2, AVGPOOL2 and L2POOL2 (S, P, D, CEIL), GLOBALPOOL, GLOBALAVGPOOL, FC-4096, RELU
    and other activations (TANH, LEAKYRELU ALPHA0.1, ...), LRN5, BN, DROPOUT (computes nothing), SOFTMAX; [a -> b]*3
    repeats, and ? behind a layer or a group leaves it out where its windows do not fit. Spaces and line breaks do not
    matter; docs/patterns.md has the whole language.
    parameters: for a .prototxt its .caffemodel; else a PyTorch state dict saved as safetensors, float32, float16 or
    bfloat16, by torchvision's names; a built-in network then has as many classes as the file. seed: of random weights,
    which depend on it and on the layers' names. cache: keep the packed weights in $XDG_CACHE_HOME/convserve, as those
    of an ONNX file. All else as load has it.
    Raises PatternError, which points at the place, ShapeError where fit="error" refuses a layer, InputError,
    MemoryBudgetError; ModelNotFoundError, ModelFormatError or ModelError for parameters that are not there, are no
    safetensors file, or do not fit the network.
    """
    form = Form(algorithm, weights, fit)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 64:
        raise InputError(f"seed is {seed!r}; allowed: whole numbers from 0 to 2^64 - 1")
    _check_threads(threads)
    budget = parse_budget(memory_budget)

    container, because = _opened_network(network, seed, parameters, form, cache=cache)
    return _model(
        container,
        because,
        preprocess=preprocess,
        labels=labels,
        algorithm=algorithm,
        threads=threads,
        memory_budget=budget,
        evict_weights=evict_weights,
    )


def import_network(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    parameters: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    algorithm: str = "auto",
    weights: str | None = None,
    fit: str = "floor",
    window: tuple[int, int] | None = None,
) -> tuple[Model, Graph]:
    """Write an ONNX file, Caffe network, container or built network as a container.

    Returns what load gives of it, and what was read. Options as for load, and parameters as for build. Weights go from
    file to file piece by piece: neither side is held. The graph that was read is not packed, or as the container had
    it. Raises what load and build raise, OSError where the target cannot be written.
    """
    form = Form(algorithm, weights, fit, window)
    container: Container | None = None
    check: Callable[[], None] | None = None
    if not (is_network(os.fspath(source)) or is_caffe(source)):
        _refuse_parameters(parameters)
    if is_network(os.fspath(source)):
        if window is not None:
            raise InputError("window is for files that leave their input size open; a built network has its own")
        state = None if parameters is None else _state_dict(parameters)
        graph = _built(os.fspath(source), 0, state, form)
        check = None if state is None else state.check_unchanged
    elif is_caffe(_existing(source)):
        files = _caffe_files(source, parameters)
        graph, check = replace(_read_caffe(files, form), name=Path(source).stem), files.check_unchanged
    elif is_container(source):
        container, _ = _opened_container(source, form, None)
        graph = replace(container.graph, name=Path(source).stem)
        check = None if container.mapping is None else container.mapping.check
    else:
        file = _onnx_file(source)
        graph, check = replace(_read_onnx(file, form), name=Path(source).stem), file.check_unchanged
    if algorithm == "gemm":
        graph = without_winograd(graph)
    if labels is None and container is not None:
        labels = container.labels
    packing = form.packing(graph) if container is None else Packing(weights=weights)
    # a model that is never run: it tells whether labels and preprocessing fit the network
    fits = Model(graph, name=graph.name, preprocess=_preprocess(preprocess, container), labels=_label_list(labels))
    write_container(target, graph, preprocess=fits.preprocess, labels=fits.labels, packing=packing, check=check)
    return load(target), graph


def _refuse_parameters(parameters: str | os.PathLike[str] | None) -> None:
    if parameters is not None:
        raise InputError(
            "parameters are for built-in networks and patterns, and for Caffe's .prototxt; this network has weights of"
            f" its own, and does not take those in {os.fspath(parameters)!r}"
        )


def _built(network: str, seed: int, state: "StateDict | None", form: Form) -> Graph:
    if is_caffe(network):
        from convserve.formats.caffe import CaffeFiles

        return form.rewritten(CaffeFiles(_existing(network)).untrained(random_parameters(seed)))
    if state is None:
        return form.rewritten(network_graph(network, random_parameters(seed), fit=form.fit))
    from convserve.formats.state_dict import state_dict_graph

    return form.rewritten(state_dict_graph(network, state, fit=form.fit))


def _state_dict(path: str | os.PathLike[str]) -> "StateDict":
    # imported here, as the onnx package is: most processes read no such file
    from convserve.formats.state_dict import StateDict

    return StateDict(path)


def _preprocess(given: Preprocess | None, container: Container | None) -> Preprocess | None:
    if given is not None or container is None or container.preprocess is None:
        return given
    return Preprocess.from_dict(container.preprocess)


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= 256:
        raise InputError(f"threads is {threads!r}; allowed: 1 to 256")


def _model(
    container: Container,
    because: str,
    *,
    preprocess: Preprocess | None,
    labels: Sequence[str] | str | os.PathLike[str] | None,
    algorithm: str,
    threads: int | None,
    memory_budget: int | None,
    evict_weights: bool,
    name: str = "",
) -> Model:
    """Return the model of a container; because: why its weights take private memory."""
    graph = without_winograd(container.graph) if algorithm == "gemm" else container.graph
    graph = replace(graph, name=name or graph.name)
    if evict_weights and container.path is None:
        raise InputError(f"evict_weights needs weights mapped from a file; these take private memory: {because}")
    path = None if container.path is None else str(container.path.absolute())
    return Model(
        graph,
        name=graph.name,
        preprocess=_preprocess(preprocess, container),
        labels=_label_list(container.labels if labels is None else labels),
        threads=threads,
        memory_budget=memory_budget,
        storage=Storage(container.content.size, path, because, container.mapping),
        evict_weights=evict_weights,
    )


def _opened_container(path: str | os.PathLike[str], form: Form, weights: str | None) -> tuple[Container, str]:
    """Return a container, mapped, or with weights of another type in private memory with the reason why."""
    if form.fit != "floor":
        raise InputError(f'fit is "{form.fit}"; a container\'s layers were fitted at import: give fit there')
    container = read_container(path)
    for node in container.graph.nodes:
        if node.op in REWRITTEN_AWAY:
            raise ModelFormatError(f"'{os.fspath(path)}': {node} has no packed form; import the network again")
    there = weights_of(container.graph)
    if weights in (None, there):
        return container, ""
    held = hold_container(container.graph, packing=Packing(weights=weights))
    if container.mapping is not None:
        container.mapping.check()
    return replace(held, preprocess=container.preprocess, labels=container.labels), f"the file has {there} weights"


def _opened_onnx(path: str | os.PathLike[str], form: Form, *, cache: bool) -> tuple[Container, str]:
    """Return an ONNX file's container, mapped from the cache, or in private memory with the reason why."""
    return file_container(path, _onnx_file, lambda file: _read_onnx(file, form), form, options=str(form), cache=cache)


def _opened_caffe(
    network: str | os.PathLike[str], parameters: str | os.PathLike[str] | None, form: Form, *, cache: bool
) -> tuple[Container, str]:
    """Return a Caffe network's container, mapped from the cache, or in private memory with the reason why."""
    # what the cache remembers the content of both files by
    place = f"{os.path.abspath(network)} with {os.path.abspath(weights_path(network, parameters))}"
    return file_container(
        place,
        lambda _: _caffe_files(network, parameters),
        lambda files: _read_caffe(files, form),
        form,
        options=str(form),
        cache=cache,
    )


def _caffe_files(network: str | os.PathLike[str], parameters: str | os.PathLike[str] | None) -> "CaffeFiles":
    from convserve.formats.caffe import CaffeFiles

    return CaffeFiles(network, weights_path(network, parameters))


def _read_caffe(files: "CaffeFiles", form: Form) -> Graph:
    return form.rewritten(files.graph(form.window))


def _opened_network(
    network: str, seed: int, parameters: str | os.PathLike[str] | None, form: Form, *, cache: bool
) -> tuple[Container, str]:
    """Return a built network's container, mapped from the cache, or in private memory with the reason why."""
    if parameters is None:
        made = functools.partial(_built, network, seed, None, form)
        text = f"{seed} {network}"
        if is_caffe(network):
            text += hashlib.sha256(_existing(network).read_bytes()).hexdigest()
        return text_container(text, made, form, what=network, cache=cache)
    if is_caffe(network):
        return _opened_caffe(network, parameters, form, cache=cache)
    options = f"{form} {network}"
    return file_container(
        parameters, _state_dict, lambda file: _built(network, seed, file, form), form, options=options, cache=cache
    )


def _onnx_file(source: str | os.PathLike[str] | bytes) -> "OnnxFile":
    # imported here: a process that only maps containers needs neither the onnx package nor its memory
    from convserve.formats.onnx import OnnxFile

    return OnnxFile(source)


def _read_onnx(file: "OnnxFile", form: Form) -> Graph:
    from convserve.formats.onnx import load_onnx

    return form.rewritten(load_onnx(file, window=form.window))


def _existing(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_file():
        names = "" if Path(path).suffix else f"; the networks that convserve.build knows are {', '.join(NETWORKS)}"
        raise ModelNotFoundError(f"no model file at {os.fspath(path)!r}{names}")
    refuse_pickle(Path(path))
    return Path(path)


def _label_list(labels: Sequence[str] | str | os.PathLike[str] | None) -> list[str] | None:
    if labels is None:
        return None
    if isinstance(labels, (str, os.PathLike)):
        try:
            return Path(labels).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the labels file {os.fspath(labels)!r} cannot be read: {error}") from error
    return [str(label) for label in labels]
