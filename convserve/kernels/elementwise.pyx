"""What works on one pixel at a time: activations, affine maps, arithmetic, softmax, shuffles; rows in and out."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from convserve.kernels.dispatch cimport cs_activation, cs_combination
from convserve.kernels.rows cimport (Op, Patch, Place, Ring, Run, Share, Sink, Source, part_of, patch_of,
                                     pixel_of, place_of, ring_row)

cdef inline float any_float(const char *at) noexcept nogil:
    """Return the float at any address: arrays that come over the wire begin anywhere."""
    cdef float value
    memcpy(&value, at, sizeof(float))
    return value


cdef void pixelwise_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of an operation with one input, whose kind is COPY, PRELU, AFFINE, SOFTMAX, LOG_SOFTMAX,
    LAYER_NORM, LP_NORM or SHUFFLE.

    AFFINE: weights are the scale, bias the shift; LAYER_NORM: also, and offset is epsilon. PRELU: weights are the
    slopes. LP_NORM: size is p, offset epsilon. SHUFFLE: output channel j*group + g is input channel g*(c/group) + j.
    """
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef int64_t channels = y.channels
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel
    cdef Place at
    cdef int64_t depth = channels // op.group
    cdef const float *values
    cdef float *out
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        values = pixel_of(x, at)
        out = pixel_of(y, at)
        if op.kind == COPY:
            memcpy(out, values, channels * sizeof(float))
        elif op.kind == PRELU:
            run.kernels.prelu(channels, values, op.weights, out)
        elif op.kind == AFFINE:
            run.kernels.affine(channels, values, op.weights, op.bias, out, op.relu)
        elif op.kind == SOFTMAX or op.kind == LOG_SOFTMAX:
            run.kernels.softmax(channels, values, out, op.kind == LOG_SOFTMAX)
        elif op.kind == LAYER_NORM:
            run.kernels.layer_norm(channels, values, op.weights, op.bias, op.offset, out)
        elif op.kind == LP_NORM:
            run.kernels.lp_norm(channels, op.size, values, op.offset, out)
        else:
            run.kernels.interleave(depth, op.group, values, depth, 1.0, out)


cdef void activation_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of an activation, whose number is op.kind and whose parameters are op.scale and op.offset."""
    cdef const Ring *x = run.rings + op.inputs[0]
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel = patch.first, count
    cdef bint gapless = x.pixel_pitch == y.channels and y.pixel_pitch == y.channels
    cdef Place at
    while pixel < patch.last:
        at = place_of(pixel, &patch)
        count = min(patch.last - pixel, patch.left + patch.width - at.column) if gapless else 1
        run.kernels.activate(<cs_activation> op.kind, count * y.channels, pixel_of(x, at), op.scale, op.offset,
                             pixel_of(y, at))
        pixel += count


cdef void combine_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of two or more inputs combined by arithmetic number op.kind, from the first to the last.

    An input of height or width 1 is read at its only row or column everywhere.
    """
    cdef const Ring *x
    cdef const Ring *y = run.rings + op.output
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel, number
    cdef Place at
    cdef const float *kept
    cdef const float *values
    cdef float *out
    cdef int relu
    for pixel in range(patch.first, patch.last):
        at = place_of(pixel, &patch)
        out = pixel_of(y, at)
        kept = NULL
        for number in range(op.input_count):
            x = run.rings + op.inputs[number]
            values = pixel_of(x, Place(at.image, at.row if x.height > 1 else 0, at.column if x.width > 1 else 0))
            if kept == NULL:
                kept = values
                continue
            relu = op.relu and number == op.input_count - 1
            run.kernels.combine(<cs_combination> op.kind, y.channels, kept, values, out, relu)
            kept = out


cdef void read_rows(const Op *op, const Run *run, const Share *share) noexcept nogil:
    """Rows [begin, end) of the image, times op.scale, from the run's source into the input's ring.

    Being multiplied, even by 1, denormal values become zeros: behind this no value is only moved that is one.
    """
    cdef const Ring *y = run.rings + op.output
    cdef const Source *source = &run.source
    cdef Patch patch = patch_of(run, share, y)
    cdef int64_t pixel = patch.first, count, c, column
    cdef Place at
    cdef const char *values
    cdef const char *value
    cdef const float *table
    cdef float *out
    cdef bint planar = (source.table == NULL and source.pixel_stride == sizeof(float)
                        and source.channel_stride % <int64_t> sizeof(float) == 0 and y.pixel_pitch == y.channels)
    while pixel < patch.last:
        at = place_of(pixel, &patch)
        count = min(patch.last - pixel, patch.left + patch.width - at.column)
        pixel += count
        values = source.data + at.image * source.image_stride + (at.row - source.begin) * source.row_stride
        values += at.column * source.pixel_stride
        out = pixel_of(y, at)
        if planar:
            run.kernels.interleave(count, y.channels, <const float *> values,
                                   source.channel_stride // <int64_t> sizeof(float), op.scale, out)
            continue
        for c in range(y.channels):
            if source.table != NULL:
                table = source.table + c * 256
                value = values + source.channel_of[c] * source.channel_stride
                for column in range(count):
                    out[column * y.pixel_pitch + c] = op.scale * table[(<const uint8_t *> value)[0]]
                    value += source.pixel_stride
            else:
                value = values + c * source.channel_stride
                for column in range(count):
                    out[column * y.pixel_pitch + c] = op.scale * any_float(value)
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
