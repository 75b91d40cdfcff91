"""The published Caffe networks, in the newer and the older form of layers, written from their definitions."""

from collections.abc import Callable

__all__ = ["NETWORKS", "alexnet", "caffenet", "fully_convolutional", "googlenet", "newer", "older", "vgg16"]

Layer = tuple[str, str, str, str, str]
"""(type, name, bottoms, top, parameters) of one layer; parameters as text, behind the message's name and a colon."""


def conv(name: str, bottom: str, filters: int, kernel: int, more: str = "", top: str = "") -> list[Layer]:
    text = f"num_output: {filters} kernel_size: {kernel} {more}"
    top = top or name
    fillers = ' weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0.1 }'
    return [
        ("Convolution", name, bottom, top, f"convolution_param {{ {text}{fillers} }}"),
        ("ReLU", f"relu_{name}", top, top, ""),
    ]


def fc(name: str, bottom: str, outputs: int) -> Layer:
    return ("InnerProduct", name, bottom, name, f"inner_product_param {{ num_output: {outputs} }}")


def hidden(name: str, bottom: str, outputs: int) -> list[Layer]:
    number = name[-1]
    return [
        fc(name, bottom, outputs),
        ("ReLU", f"relu{number}", name, name, ""),
        ("Dropout", f"drop{number}", name, name, "dropout_param { dropout_ratio: 0.5 }"),
    ]


def pool(name: str, bottom: str, kernel: int, stride: int, more: str = "pool: MAX") -> Layer:
    return ("Pooling", name, bottom, name, f"pooling_param {{ {more} kernel_size: {kernel} stride: {stride} }}")


def norm(name: str, bottom: str) -> Layer:
    return ("LRN", name, bottom, name, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")


SOFTMAX: Layer = ("Softmax", "prob", "fc8", "prob", "")


def _five_convolutions(first: str) -> list[Layer]:
    return [
        *conv("conv2", first, 256, 5, "pad: 2 group: 2"),
        *(
            [norm("norm2", "conv2"), pool("pool2", "norm2", 3, 2)]
            if first == "pool1"
            else [pool("pool2", "conv2", 3, 2), norm("norm2", "pool2")]
        ),
        *conv("conv3", "pool2" if first == "pool1" else "norm2", 384, 3, "pad: 1"),
        *conv("conv4", "conv3", 384, 3, "pad: 1 group: 2"),
        *conv("conv5", "conv4", 256, 3, "pad: 1 group: 2"),
        pool("pool5", "conv5", 3, 2),
    ]


def alexnet() -> list[Layer]:
    """bvlc_alexnet: normalised before it is pooled, over 227x227."""
    first = [*conv("conv1", "data", 96, 11, "stride: 4"), norm("norm1", "conv1"), pool("pool1", "norm1", 3, 2)]
    head = [*hidden("fc6", "pool5", 4096), *hidden("fc7", "fc6", 4096), fc("fc8", "fc7", 1000), SOFTMAX]
    return [*first, *_five_convolutions("pool1"), *head]


def caffenet() -> list[Layer]:
    """bvlc_reference_caffenet: pooled before it is normalised."""
    first = [*conv("conv1", "data", 96, 11, "stride: 4"), pool("pool1", "conv1", 3, 2), norm("norm1", "pool1")]
    head = [*hidden("fc6", "pool5", 4096), *hidden("fc7", "fc6", 4096), fc("fc8", "fc7", 1000), SOFTMAX]
    return [*first, *_five_convolutions("norm1"), *head]


def vgg16() -> list[Layer]:
    """VGG_ILSVRC_16_layers over 224x224."""
    layers: list[Layer] = []
    bottom = "data"
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, depth + 1):
            name = f"conv{stage}_{number}"
            layers += conv(name, bottom, min(32 << stage, 512), 3, "pad: 1")
            bottom = name
        layers.append(pool(f"pool{stage}", bottom, 2, 2))
        bottom = f"pool{stage}"
    return [*layers, *hidden("fc6", "pool5", 4096), *hidden("fc7", "fc6", 4096), fc("fc8", "fc7", 1000), SOFTMAX]


INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet() -> list[Layer]:
    """bvlc_googlenet over 224x224, without the heads that only training has."""
    layers = [
        *conv("conv1/7x7_s2", "data", 64, 7, "pad: 3 stride: 2"),
        pool("pool1/3x3_s2", "conv1/7x7_s2", 3, 2),
        norm("pool1/norm1", "pool1/3x3_s2"),
        *conv("conv2/3x3_reduce", "pool1/norm1", 64, 1),
        *conv("conv2/3x3", "conv2/3x3_reduce", 192, 3, "pad: 1"),
        norm("conv2/norm2", "conv2/3x3"),
        pool("pool2/3x3_s2", "conv2/norm2", 3, 2),
    ]
    bottom = "pool2/3x3_s2"
    for module, (one, reduce3, three, reduce5, five, proj) in INCEPTIONS.items():
        name = f"inception_{module}"
        layers += [
            *conv(f"{name}/1x1", bottom, one, 1),
            *conv(f"{name}/3x3_reduce", bottom, reduce3, 1),
            *conv(f"{name}/3x3", f"{name}/3x3_reduce", three, 3, "pad: 1"),
            *conv(f"{name}/5x5_reduce", bottom, reduce5, 1),
            *conv(f"{name}/5x5", f"{name}/5x5_reduce", five, 5, "pad: 2"),
            pool(f"{name}/pool", bottom, 3, 1, "pool: MAX pad: 1"),
            *conv(f"{name}/pool_proj", f"{name}/pool", proj, 1),
        ]
        parts = " ".join(f"{name}/{part}" for part in ("1x1", "3x3", "5x5", "pool_proj"))
        bottom = f"{name}/output"
        layers.append(("Concat", bottom, parts, bottom, ""))
        if module in ("3b", "4e"):
            after = f"pool{int(module[0])}/3x3_s2"
            layers.append(pool(after, bottom, 3, 2))
            bottom = after
    return [
        *layers,
        pool("pool5/7x7_s1", bottom, 7, 1, "pool: AVE"),
        ("Dropout", "pool5/drop_7x7_s1", "pool5/7x7_s1", "pool5/7x7_s1", "dropout_param { dropout_ratio: 0.4 }"),
        ("InnerProduct", "loss3/classifier", "pool5/7x7_s1", "loss3/classifier",
         "inner_product_param { num_output: 1000 }"),
        ("Softmax", "prob", "loss3/classifier", "prob", ""),
    ]


def fully_convolutional(layers: list[Layer], size: int) -> list[Layer]:
    """The notes' net surgery: fully-connected layers as convolutions, the first as large as its input."""
    surgery = []
    for type, name, bottom, top, param in layers:
        if type == "InnerProduct":
            kernel, size = size, 1
            outputs = param.split("{")[1].removesuffix(" }").strip()
            type, param = "Convolution", f"convolution_param {{ {outputs} kernel_size: {kernel} }}"
        surgery.append((type, name, bottom, top, param))
    return surgery


def newer(layers: list[Layer], side: int) -> str:
    """Return the text in the newer form, with a layer for the input."""
    text = 'name: "net"\nlayer {\n  name: "data"\n  type: "Input"\n  top: "data"\n'
    text += f"  input_param {{ shape: {{ dim: 10 dim: 3 dim: {side} dim: {side} }} }}\n}}\n"
    return text + "".join(_layer("layer", f'"{type}"', *rest) for type, *rest in layers)


OLDER_TYPES = {"InnerProduct": "INNER_PRODUCT", "ReLU": "RELU"}


def older(layers: list[Layer], side: int) -> str:
    """Return the text in the older form: types as words, the input before the layers."""
    text = f'name: "net"\ninput: "data"\ninput_dim: 10\ninput_dim: 3\ninput_dim: {side}\ninput_dim: {side}\n'
    return text + "".join(_layer("layers", OLDER_TYPES.get(type, type.upper()), *rest) for type, *rest in layers)


def _layer(kind: str, type: str, name: str, bottoms: str, top: str, param: str) -> str:
    lines = [f'name: "{name}"', f"type: {type}", *(f'bottom: "{bottom}"' for bottom in bottoms.split())]
    learning = {"layer": "param { lr_mult: 1 decay_mult: 1 }", "layers": "blobs_lr: 1 weight_decay: 1"}[kind]
    has_weights = "num_output" in param
    lines += [f'top: "{top}"', *([learning] if has_weights else []), *([param] if param else [])]
    return f"{kind} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


NETWORKS: dict[str, tuple[Callable[[], list[Layer]], int, int]] = {
    "alexnet": (alexnet, 227, 60965224),
    "caffenet": (caffenet, 227, 60965224),
    "vgg16": (vgg16, 224, 138357544),
    "googlenet": (googlenet, 224, 6998552),
}
"""The layers, the side of the input, and how many parameters there are."""
