"""What works on one pixel at a time: activations, affine maps, sums, products, softmax, shuffles; rows in and out."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from convserve.kernels.rows cimport (Op, Place, Ring, Run, Share, Sink, Source, part_of, pixel_of,
                                     place_of, ring_row)


cdef void pixelwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of an operation with one input, whose kind is COPY, RELU, AFFINE, SOFTMAX or SHUFFLE.

    AFFINE: weights are the scale, bias the shift. SHUFFLE: output channel j*group + g is input channel g*(c/group) + j.
    """
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t rows = end - begin, channels = y.channels
    cdef int64_t first, last, pixel, g, j
    cdef Place at
    cdef int64_t depth = channels // op.group
    cdef const float *values
    cdef float *out
    part_of(run.images * rows * y.width, share, &first, &last)
    for pixel in range(first, last):
        at = place_of(pixel, begin, rows, y.width)
        values = pixel_of(x, at)
        out = pixel_of(y, at)
        if op.kind == COPY:
            memcpy(out, values, channels * sizeof(float))
        elif op.kind == RELU:
            run.kernels.relu(channels, values, out)
        elif op.kind == AFFINE:
            run.kernels.affine(channels, values, op.weights, op.bias, out, op.relu)
        elif op.kind == SOFTMAX:
            run.kernels.softmax(channels, values, out)
        else:
            for g in range(op.group):
                for j in range(depth):
                    out[j * op.group + g] = values[g * depth + j]


cdef void combine_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the sum (ADD) or product (MUL) of two or more inputs, from the first to the last.

    An input of height or width 1 is read at its only row or column everywhere.
    """
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x
    cdef const Ring *y = run.rings + op.output
    cdef int64_t rows = end - begin
    cdef int64_t first, last, pixel, number
    cdef Place at
    cdef const float *kept
    cdef const float *values
    cdef float *out
    cdef int relu
    part_of(run.images * rows * y.width, share, &first, &last)
    for pixel in range(first, last):
        at = place_of(pixel, begin, rows, y.width)
        out = pixel_of(y, at)
        kept = NULL
        for number in range(op.input_count):
            x = run.rings + op.inputs[number]
            values = pixel_of(x, Place(at.image, at.row if x.height > 1 else 0, at.column if x.width > 1 else 0))
            if kept == NULL:
                kept = values
                continue
            relu = op.relu and number == op.input_count - 1
            if op.kind == ADD:
                run.kernels.add(y.channels, kept, values, out, relu)
            else:
                run.kernels.mul(y.channels, kept, values, out, relu)
            kept = out


cdef void flatten_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end): the window at each position in C, H, W order, laid along the channels."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t rows = end - begin, area = op.kernel_h * op.kernel_w
    cdef int64_t first, last, pixel, i, j, c
    cdef Place at
    cdef const float *values
    cdef float *out
    part_of(run.images * rows * y.width, share, &first, &last)
    for pixel in range(first, last):
        at = place_of(pixel, begin, rows, y.width)
        out = pixel_of(y, at)
        for i in range(op.kernel_h):
            for j in range(op.kernel_w):
                values = pixel_of(x, Place(at.image, at.row + i, at.column + j))
                for c in range(x.channels):
                    out[c * area + i * op.kernel_w + j] = values[c]


cdef void read_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the image, from the run's source into the input's ring."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *y = run.rings + op.output
    cdef const Source *source = &run.source
    cdef int64_t rows = end - begin
    cdef int64_t first, last, line, image, row, c, column
    cdef const char *values
    cdef const char *value
    cdef const float *table
    cdef float *out
    part_of(run.images * rows, share, &first, &last)
    for line in range(first, last):
        image = line // rows
        row = begin + line % rows
        values = source.data + image * source.image_stride + (row - source.begin) * source.row_stride
        out = ring_row(y, image, row)
        for c in range(y.channels):
            if source.table != NULL:
                table = source.table + c * 256
                value = values + source.channel_of[c] * source.channel_stride
                for column in range(y.width):
                    out[column * y.pixel_pitch + c] = table[(<const uint8_t *> value)[0]]
                    value += source.pixel_stride
            else:
                value = values + c * source.channel_stride
                for column in range(y.width):
                    out[column * y.pixel_pitch + c] = (<const float *> value)[0]
                    value += source.pixel_stride


cdef void write_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of an output tensor to its sink, number op.size; what lies beyond the sink is dropped."""
    cdef int64_t begin = share.begin, end = share.end
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Sink *sink = run.sinks + op.size
    cdef int64_t rows = min(end, sink.rows) - begin
    cdef int64_t columns = min(x.width, sink.columns)
    cdef int64_t first, last, line, image, row, c, column
    cdef const float *values
    cdef char *place
    part_of(run.images * max(rows, 0), share, &first, &last)
    for line in range(first, last):
        image = line // rows
        row = begin + line % rows
        values = ring_row(x, image, row)
        place = sink.data + image * sink.image_stride + (row - sink.begin) * sink.row_stride
        for column in range(columns):
            for c in range(sink.channels):
                (<float *> (place + column * sink.pixel_stride + c * sink.channel_stride))[0] = (
                    values[column * x.pixel_pitch + (sink.chosen[c] if sink.chosen != NULL else c)])


cdef void zero_padding(const Ring *ring, int64_t images) noexcept nogil:
    """Write the zeros left and right of every row of a ring; bands never touch them again."""
    cdef int64_t image, row
    cdef float *start
    for image in range(images):
        for row in range(ring.rows):
            start = ring.base + image * ring.image_pitch + row * ring.row_pitch
            memset(start - ring.pad_left * ring.pixel_pitch, 0, ring.pad_left * ring.pixel_pitch * sizeof(float))
            memset(start + ring.width * ring.pixel_pitch, 0, ring.pad_right * ring.pixel_pitch * sizeof(float))


cdef void poison_rows(const Ring *ring, int64_t images, int64_t begin, int64_t end) noexcept nogil:
    """Fill rows that nobody needs any more with NaN (all bits set), between the paddings."""
    cdef int64_t image, row
    for image in range(images):
        for row in range(begin, end):
            memset(ring_row(ring, image, row), 0xff, ring.width * ring.pixel_pitch * sizeof(float))
