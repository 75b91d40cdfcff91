"""Local response normalisation across channels: x / (bias + alpha/size * sum of squares of the neighbours)^beta."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Place, Ring, Run, Share, part_of, pixel_of, place_of


cdef void lrn_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end), each pixel by itself."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef float *squares = <float *> (run.scratch + share.thread * run.scratch_pitch)
    cdef int64_t first, last, pixel
    cdef Place at
    cdef int64_t rows = end - begin
    cdef const float *values
    cdef float *out
    part_of(run.images * rows * y.width, share, &first, &last)
    for pixel in range(first, last):
        at = place_of(pixel, begin, rows, y.width)
        values = pixel_of(x, at)
        out = pixel_of(y, at)
        run.kernels.lrn(y.channels, op.size, op.below, op.scale, op.beta, op.offset, values, squares, out)
