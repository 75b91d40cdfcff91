"""Local response normalisation across channels: x / (bias + alpha/size * sum of squares of the neighbours)^beta."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Ring, Run, Share, part_of, ring_row


cdef void lrn_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end), each pixel by itself."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef float *squares = <float *> (run.scratch + share.thread * run.scratch_pitch)
    cdef int64_t first, last, line, image, row, column
    cdef int64_t rows = end - begin
    cdef const float *values
    cdef float *out
    part_of(run.images * rows * y.width, share, &first, &last)
    for line in range(first, last):
        image = line // (rows * y.width)
        row = begin + line // y.width % rows
        column = line % y.width
        values = ring_row(x, image, row) + column * x.pixel_pitch
        out = ring_row(y, image, row) + column * y.pixel_pitch
        run.kernels.lrn(y.channels, op.size, op.below, op.scale, op.beta, op.offset, values, squares, out)
