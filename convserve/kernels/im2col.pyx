"""im2col as an indirection: which runs of memory lie under the filter at each output pixel, never stored as a matrix.

Rows are NHWC and physically padded, so the kernel_w * channels values under one filter row are one run
where the filter is not dilated horizontally and all channels are read; else each filter column is a run.
Output pixels are numbered within a patch (rows.pxd).
"""

from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport CS_MR_MAX
from convserve.kernels.rows cimport Op, Patch, Place, Ring, Run, pixel_of, place_of, ring_row


cdef Indirection indirection(const Op *op, const Ring *x) noexcept nogil:
    cdef Indirection form
    form.group_channels = x.channels // op.group
    if op.dilation_w == 1 and op.group == 1 and x.pixel_pitch == x.channels:
        form.runs_w = 1
        form.segment_length = op.kernel_w * x.channels
    else:
        form.runs_w = op.kernel_w
        form.segment_length = form.group_channels
    form.segments = op.kernel_h * form.runs_w
    return form


cdef inline Place next_row(Place at, const Patch *patch) noexcept nogil:
    # The first pixel behind the row of another one.
    at.column = patch.left
    at.row += 1
    if at.row == patch.begin + patch.rows:
        at.row = patch.begin
        at.image += 1
    return at


cdef void point(const Op *op, const Run *run, const Ring *x, const Indirection *form, const Patch *patch, int64_t pixel,
                int64_t count, int64_t group, const float **a) noexcept nogil:
    """Fill a[s*CS_MR_MAX + i] with the start of run s behind output pixel number pixel + i, for i < count."""
    cdef Place at = place_of(pixel, patch)
    cdef int64_t step = op.stride_w * x.pixel_pitch
    cdef int64_t across = op.dilation_w * x.pixel_pitch
    cdef int64_t i = 0, j, length, kh, kw, row
    cdef const float *start
    cdef const float *run_start
    cdef const float **slot
    while i < count:
        length = min(count - i, patch.left + patch.width - at.column)
        slot = a + i
        for kh in range(op.kernel_h):
            row = at.row * op.stride_h - op.pad_top + kh * op.dilation_h
            if 0 <= row < x.height:
                start = ring_row(x, at.image, row)
            else:
                start = run.zeros + x.pad_left * x.pixel_pitch
            start += at.column * step - op.pad_left * x.pixel_pitch + group * form.group_channels
            for kw in range(form.runs_w):
                run_start = start + kw * across
                for j in range(length):
                    slot[j] = run_start
                    run_start += step
                slot += CS_MR_MAX
        i += length
        at = next_row(at, patch)


cdef void point_pixels(const Ring *y, const Patch *patch, int64_t pixel, int64_t count, float **c) noexcept nogil:
    """Fill c[i] with the first channel of pixel number pixel + i of the rows from begin on."""
    cdef Place at = place_of(pixel, patch)
    cdef int64_t i = 0, j, length
    cdef float *start
    while i < count:
        length = min(count - i, patch.left + patch.width - at.column)
        start = pixel_of(y, at)
        for j in range(length):
            c[i + j] = start
            start += y.pixel_pitch
        i += length
        at = next_row(at, patch)
