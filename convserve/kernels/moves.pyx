"""What moves values: slices, pads and resizes by a table for each axis, and blocks of pixels into channels and back."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

from convserve.kernels.rows cimport (Op, Patch, Place, Ring, Run, Share, Taps, patch_of, pixel_of, place_of, ring_row)

cdef int64_t TAPS = 64


cdef inline void move_channels(const Op *op, int64_t count, const float *values, float *out) noexcept nogil:
    cdef const int64_t *at = op.channel_taps.at
    cdef int64_t c
    if at == NULL:
        memcpy(out, values, count * sizeof(float))
    elif op.consecutive:
        memcpy(out, values + at[0], count * sizeof(float))
    else:
        for c in range(count):
            out[c] = values[at[c]] if at[c] >= 0 else op.offset


cdef inline bint outside(const Taps *taps, int64_t position) noexcept nogil:
    return taps.at != NULL and taps.at[position * taps.count] < 0


cdef void sample_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of a Slice, Pad or Resize: sums over the taps of row and column, in that order.

    A position outside the input is op.offset. A tap of weight 0 is not read.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef const Taps *down = &op.row_taps
    cdef const Taps *across = &op.column_taps
    cdef int64_t pixel, c, i, j, row, column, count, done
    cdef float weight
    cdef const float *taps[64]
    cdef float weights[64]
    cdef const float *start
    cdef float *out
    cdef Place at
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        out = pixel_of(y, at)
        if outside(down, at.row) or outside(across, at.column):
            for c in range(y.channels):
                out[c] = op.offset
            continue
        if down.count == 1 and across.count == 1:
            row = at.row if down.at == NULL else down.at[at.row]
            column = at.column if across.at == NULL else across.at[at.column]
            move_channels(op, y.channels, ring_row(x, at.image, row) + column * x.pixel_pitch, out)
            continue
        count = 0
        done = 0
        for i in range(down.count):
            row = at.row if down.at == NULL else down.at[at.row * down.count + i]
            start = ring_row(x, at.image, row)
            for j in range(across.count):
                column = at.column if across.at == NULL else across.at[at.column * across.count + j]
                weight = ((1.0 if down.at == NULL else down.weights[at.row * down.count + i])
                          * (1.0 if across.at == NULL else across.weights[at.column * across.count + j]))
                if weight == 0.0:
                    continue
                if count == TAPS:
                    run.kernels.weighted_sum(y.channels, count, taps, weights, out, done == 0)
                    done += count
                    count = 0
                taps[count] = start + column * x.pixel_pitch
                weights[count] = weight
                count += 1
        run.kernels.weighted_sum(y.channels, count, taps, weights, out, done == 0)


cdef void depth_to_space_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): pixel (i, j) of a block of kernel_h x kernel_w comes from the block's one input pixel.

    Its channel c is input channel (i*kernel_w + j)*channels + c, or with block_inside c*area + i*kernel_w + j.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t height = op.kernel_h, width = op.kernel_w, area = height * width
    cdef int64_t pixel, c, inner
    cdef Place at
    cdef const float *values
    cdef float *out
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        out = pixel_of(y, at)
        values = pixel_of(x, Place(at.image, at.row // height, at.column // width))
        inner = at.row % height * width + at.column % width
        if op.block_inside:
            for c in range(y.channels):
                out[c] = values[c * area + inner]
        else:
            memcpy(out, values + inner * y.channels, y.channels * sizeof(float))


cdef void space_to_depth_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): a pixel has the channels of all pixels of its block, in the order of depth_to_space_rows.

    Blocks begin stride_h, stride_w apart: a Flatten's may overlap.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t height = op.kernel_h, width = op.kernel_w, area = height * width
    cdef int64_t pixel, c, i, j
    cdef Place at
    cdef const float *values
    cdef float *out
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        out = pixel_of(y, at)
        for i in range(height):
            for j in range(width):
                values = pixel_of(x, Place(at.image, at.row * op.stride_h + i, at.column * op.stride_w + j))
                if op.block_inside:
                    for c in range(x.channels):
                        out[c * area + i * width + j] = values[c]
                else:
                    memcpy(out + (i * width + j) * x.channels, values, x.channels * sizeof(float))
