"""Local response normalisation across channels: x / (bias + alpha/size * sum of squares of the neighbours)^beta."""

from libc.stdint cimport int64_t

from convserve.kernels.rows cimport Op, Patch, Place, Ring, Run, Share, patch_of, pixel_of, place_of


cdef void lrn_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end), each pixel by itself."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef float *squares = <float *> (run.scratch + share.thread * run.scratch_pitch)
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel
    cdef Place at
    cdef const float *values
    cdef float *out
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        values = pixel_of(x, at)
        out = pixel_of(y, at)
        run.kernels.lrn(y.channels, op.size, op.below, op.scale, op.beta, op.offset, values, squares, out)
