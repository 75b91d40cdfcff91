"""Builds the Cython kernels, the executor and the C micro-kernels; pyproject.toml has everything else."""

from Cython.Build import cythonize
from setuptools import Extension, setup

# -ffp-contract=off: a fused multiply-add happens only where cs_fma is written, so every instruction set sums alike.
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-semantic-interposition", "-g1"]
MICRO_KERNELS = [f"convserve/kernels/cs_{isa}.c" for isa in ("portable", "avx2", "avx512")]


def extension(name: str, *sources: str) -> Extension:
    """Return the extension module of one .pyx file, with C sources linked into it."""
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx", *sources],
        include_dirs=["convserve/kernels"],
        depends=["convserve/kernels/cs_kernels.h", "convserve/kernels/cs_body.h"],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    )


setup(
    ext_modules=cythonize(
        [
            extension("convserve.kernels.dispatch", *MICRO_KERNELS),
            extension("convserve.kernels.im2col"),
            extension("convserve.kernels.gemm"),
            extension("convserve.kernels.pool"),
            extension("convserve.kernels.lrn"),
            extension("convserve.kernels.elementwise"),
            extension("convserve.engine.team"),
            extension("convserve.engine.executor"),
        ],
        language_level=3,
        compiler_directives={"cdivision": True},
    ),
)
