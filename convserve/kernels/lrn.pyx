"""Local response normalisation across channels: x / (bias + alpha/size * sum of squares of the neighbours)^beta."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Ring, Run, ring_row, share


cdef void lrn_rows(const Op *op, const Run *run, int64_t begin, int64_t end, int64_t thread) noexcept nogil:
    """Rows [begin, end), each pixel by itself."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef float *squares = <float *> (run.scratch + thread * run.scratch_pitch)
    cdef int64_t first, last, line, image, row, column
    cdef int64_t rows = end - begin
    cdef const float *values
    cdef float *out
    share(run.images * rows * y.width, thread, run.threads, &first, &last)
    for line in range(first, last):
        image = line // (rows * y.width)
        row = begin + line // y.width % rows
        column = line % y.width
        values = ring_row(x, image, row) + column * x.pixel_pitch
        out = ring_row(y, image, row) + column * y.pixel_pitch
        run.kernels.lrn(y.channels, op.size, op.below, op.scale, op.beta, op.offset, values, squares, out)
