"""Builds the Cython modules, the C micro-kernels and the modules of the .proto files; the rest is in pyproject.toml."""

import os
from pathlib import Path
from typing import ClassVar

from Cython.Build import cythonize
from setuptools import Command, Extension, setup
from setuptools.command.build_py import build_py

# -ffp-contract=off: a fused multiply-add happens only where cs_fma is written, so every instruction set sums alike.
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-semantic-interposition", "-g1"]
HEADERS = ("kernels", "body", "functions", "activations", "norms", "winograd")
MICRO_KERNELS = [f"convserve/kernels/cs_{isa}.c" for isa in ("portable", "avx2", "avx512")]


_MODULES = ("--python_out=.", "--pyi_out=.")
PROTOS = {
    "protos/convserve/wire/convserve.proto": (*_MODULES, "--grpc_python_out=."),
    "protos/convserve/formats/caffe/net.proto": _MODULES,
    # a protocol of others: its descriptors go into a pool of their own (convserve/wire/open_inference.py)
    "protos/convserve/wire/open_inference.proto": ("--descriptor_set_out=convserve/wire/open_inference.binpb",),
}
"""The .proto files, and what is generated of each."""


class Stubs(Command):
    """Generates the _pb2.py modules, their types, those of gRPC and the descriptor set from the .proto files."""

    description = "generate the modules and the descriptor set of the .proto files"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """Take no options."""

    def finalize_options(self) -> None:
        """Take no options."""

    def run(self) -> None:
        """Write the stubs into the source tree, where editable installs read them."""
        import grpc_tools
        from grpc_tools import protoc

        include = Path(grpc_tools.__file__).with_name("_proto")
        for proto, outputs in PROTOS.items():
            if protoc.main(["protoc", "-Iprotos", f"-I{include}", *outputs, proto]):
                raise SystemExit(f"nothing could be made of {proto}")


class BuildPy(build_py):
    """Collects the Python modules, the stubs among them."""

    def run(self) -> None:
        """Generate the stubs first."""
        self.run_command("stubs")
        super().run()


def extension(name: str, *sources: str) -> Extension:
    """Return the extension module of one .pyx file, with C sources linked into it."""
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx", *sources],
        include_dirs=["convserve/kernels"],
        depends=[f"convserve/kernels/cs_{part}.h" for part in HEADERS],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )


setup(
    ext_modules=cythonize(
        [
            extension("convserve.kernels.dispatch", *MICRO_KERNELS),
            extension("convserve.kernels.im2col"),
            extension("convserve.kernels.gemm"),
            extension("convserve.kernels.winograd"),
            extension("convserve.kernels.pool"),
            extension("convserve.kernels.local"),
            extension("convserve.kernels.lrn"),
            extension("convserve.kernels.norms"),
            extension("convserve.kernels.moves"),
            extension("convserve.kernels.elementwise"),
            extension("convserve.formats.mapping"),
            extension("convserve.engine.team"),
            extension("convserve.engine.limits"),
            extension("convserve.engine.binding"),
            extension("convserve.engine.executor"),
        ],
        language_level=3,
        compiler_directives={"cdivision": True},
    ),
    cmdclass={"build_py": BuildPy, "stubs": Stubs},
    options={"build_ext": {"parallel": min(os.cpu_count() or 1, 8)}},
)
