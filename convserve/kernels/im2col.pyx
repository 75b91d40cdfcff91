"""im2col as an indirection: which runs of memory lie under the filter at each output pixel, never stored as a matrix.

Rows are NHWC and physically padded, so the kernel_w * channels values under one filter row are one run
where the filter is not dilated horizontally and all channels are read; else each filter column is a run.
Output pixels of a band are numbered image by image, row by row; pixel p of rows [begin, ..) of width w is
(image, y, x) with p = (image * rows + y - begin) * w + x.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

from convserve.kernels.dispatch cimport CS_MR_MAX
from convserve.kernels.rows cimport Op, Ring, Run, ring_row


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


cdef void point(const Op *op, const Run *run, const Ring *x, const Indirection *form, int64_t begin, int64_t pixel,
                int64_t pixels_per_image, int64_t count, int64_t group, const float **a) noexcept nogil:
    """Fill a[s*CS_MR_MAX + i] with the start of run s behind output pixel number pixel + i, for i < count."""
    cdef int64_t width = run.rings[op.output].width
    cdef int64_t image = pixel // pixels_per_image
    cdef int64_t within = pixel - image * pixels_per_image
    cdef int64_t y = begin + within // width
    cdef int64_t column = within % width
    cdef int64_t end = begin + pixels_per_image // width
    cdef int64_t step = op.stride_w * x.pixel_pitch
    cdef int64_t across = op.dilation_w * x.pixel_pitch
    cdef int64_t i = 0, j, length, kh, kw, row
    cdef const float *start
    cdef const float *run_start
    cdef const float **slot
    while i < count:
        length = min(count - i, width - column)
        slot = a + i
        for kh in range(op.kernel_h):
            row = y * op.stride_h - op.pad_top + kh * op.dilation_h
            if 0 <= row < x.height:
                start = ring_row(x, image, row)
            else:
                start = run.zeros + x.pad_left * x.pixel_pitch
            start += column * step - op.pad_left * x.pixel_pitch + group * form.group_channels
            for kw in range(form.runs_w):
                run_start = start + kw * across
                for j in range(length):
                    slot[j] = run_start
                    run_start += step
                slot += CS_MR_MAX
        i += length
        column = 0
        y += 1
        if y == end:
            y = begin
            image += 1


cdef void pack(const Indirection *form, int64_t count, const float **a, float *panel) noexcept nogil:
    """Copy the runs of each pixel behind one another into rows of panel, and let a[i] point at row i."""
    cdef int64_t k = form.segments * form.segment_length
    cdef int64_t i, s, t
    cdef float *row
    cdef const float *values
    for i in range(count):
        row = panel + i * k
        for s in range(form.segments):
            values = a[s * CS_MR_MAX + i]
            if form.segment_length > 16:
                memcpy(row, values, form.segment_length * sizeof(float))
            else:
                for t in range(form.segment_length):
                    row[t] = values[t]
            row += form.segment_length
    for i in range(count):
        a[i] = panel + i * k


cdef void point_pixels(const Ring *y, int64_t begin, int64_t pixel, int64_t pixels_per_image, int64_t count,
                       float **c) noexcept nogil:
    """Fill c[i] with the first channel of pixel number pixel + i of the rows from begin on."""
    cdef int64_t image = pixel // pixels_per_image
    cdef int64_t within = pixel - image * pixels_per_image
    cdef int64_t row = begin + within // y.width
    cdef int64_t column = within % y.width
    cdef int64_t end = begin + pixels_per_image // y.width
    cdef int64_t i = 0, j, length
    cdef float *start
    while i < count:
        length = min(count - i, y.width - column)
        start = ring_row(y, image, row) + column * y.pixel_pitch
        for j in range(length):
            c[i + j] = start
            start += y.pixel_pitch
        i += length
        column = 0
        row += 1
        if row == end:
            row = begin
            image += 1
