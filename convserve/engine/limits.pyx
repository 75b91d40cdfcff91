"""What this machine could do at most, measured: multiply-adds of the kernels in use, and reading from memory."""

import time

import numpy as np

from libc.stdint cimport int64_t, uintptr_t

from convserve.engine.team cimport Stay, enter, leave, run_parts
from convserve.kernels.dispatch cimport CS_F32, CS_MR_MAX, CS_PANEL, cs_gemm_params, cs_kernels, table

from convserve.errors import MemoryBudgetError
from convserve.kernels import dispatch

__all__ = ["peak_flops", "read_bandwidth"]

cdef enum:
    DEPTH = 192          # products of one sum: operands stay in the first-level cache
    CALLS = 2000

cdef struct Work:
    const cs_kernels *kernels
    const float *operands
    float *results
    const int64_t *words
    int64_t word_count
    int64_t passes
    int64_t sums[256]


cdef void multiply(void *arg, int64_t part, int64_t parts, int64_t thread) noexcept nogil:
    cdef Work *work = <Work *> arg
    cdef const float *a[16]
    cdef float *c[16]
    cdef cs_gemm_params params
    cdef int64_t i, _call
    for i in range(CS_MR_MAX):
        a[i] = work.operands + i * 16
        c[i] = work.results + (thread * CS_MR_MAX + i) * 4 * CS_PANEL
    params.segments = 1
    params.segment_length = DEPTH
    params.a = a
    params.b = work.operands
    params.b_type = CS_F32
    params.panel_pitch = DEPTH * CS_PANEL
    params.bias = work.operands
    params.c = c
    params.residual = NULL
    params.channel = 0
    params.n = work.kernels.panels * CS_PANEL
    params.relu = 0
    for _call in range(CALLS):
        work.kernels.gemm(&params, work.kernels.mr)


cdef void read(void *arg, int64_t part, int64_t parts, int64_t thread) noexcept nogil:
    cdef Work *work = <Work *> arg
    cdef int64_t lines = work.word_count // 8
    cdef int64_t first = lines * part // parts * 8, last = lines * (part + 1) // parts * 8
    cdef int64_t a = 0, b = 0, c = 0, d = 0, i, _pass
    for _pass in range(work.passes):
        i = first
        while i < last:
            a += work.words[i] ^ work.words[i + 4]
            b += work.words[i + 1] ^ work.words[i + 5]
            c += work.words[i + 2] ^ work.words[i + 6]
            d += work.words[i + 3] ^ work.words[i + 7]
            i += 8
    work.sums[thread] = a ^ b ^ c ^ d


cdef double best_seconds(Work *work, bint reading, int64_t threads, int64_t turns) except -1:
    cdef Stay stay
    cdef bint entered
    best = float("inf")
    for _turn in range(turns):
        start = time.perf_counter()
        with nogil:
            entered = enter(threads, &stay)
            if entered:
                run_parts(read if reading else multiply, work, threads, threads)
                leave(&stay)
        if not entered:
            raise MemoryBudgetError(f"the operating system refused {threads} threads for a measurement")
        best = min(best, time.perf_counter() - start)
    return best


def peak_flops(threads: int = 1) -> float:
    """Return the most multiply-adds per second, two floating-point operations each, of `threads` threads together.

    The kernel in use on operands in the first-level cache: the limit of every layer on this machine today.
    """
    cdef Work work
    operands = np.ones(max(DEPTH, 64) * 64, np.float32)
    results = np.empty(threads * CS_MR_MAX * 4 * CS_PANEL, np.float32)
    work.kernels = table(dispatch.active())
    work.operands = <const float *> <uintptr_t> operands.ctypes.data
    work.results = <float *> <uintptr_t> results.ctypes.data
    flops = 2.0 * DEPTH * CALLS * work.kernels.mr * work.kernels.panels * CS_PANEL * threads
    return flops / best_seconds(&work, False, threads, 20)


def read_bandwidth(threads: int = 1, size_bytes: int = 256 << 20) -> float:
    """Return the bytes per second that `threads` threads together read, again and again in order, of so many bytes."""
    cdef Work work
    words = np.ones(size_bytes // 8, np.int64)
    work.words = <const int64_t *> <uintptr_t> words.ctypes.data
    work.word_count = len(words)
    work.passes = max(1, (256 << 20) // size_bytes)
    return 8.0 * len(words) * work.passes / best_seconds(&work, True, threads, 5)
