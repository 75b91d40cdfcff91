# What every row kernel is given: rings of rows, one operation, one run; and the few lines they share.
from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport cs_kernels, cs_type


cdef struct Ring:
    # The last rows of a tensor. Value (image, y, x, c) lies at
    # base[image*image_pitch + (y % rows)*row_pitch + x*pixel_pitch + c], -pad_left <= x < width + pad_right;
    # pitches are in floats. A tensor that is joined into another has that one's pitches and its own base.
    float *base
    int64_t rows
    int64_t row_pitch
    int64_t pixel_pitch
    int64_t image_pitch
    int64_t channels
    int64_t height
    int64_t width
    int64_t pad_left
    int64_t pad_right


cdef struct Taps:
    # Which positions of one axis each output reads, -1 for the constant op.offset, and their weights, `count` of each.
    # at NULL: its own place.
    const int64_t *at
    const float *weights
    int64_t count


cdef struct Op:
    # One operation of the network; unused fields are 0.
    int kind
    int relu
    int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w
    int64_t pad_top, pad_left, pad_bottom, pad_right
    int64_t group
    int count_include_pad
    int64_t size, below    # LRN's window, its begin below a channel; size also: outputs of a Winograd tile, a norm's p
    int64_t at_once        # Winograd: tiles whose products lie in scratch at a time
    float scale, beta, offset   # scale, offset also: an activation's two parameters
    const float *weights
    const float *bias
    const char *panels     # convolution: its weights, in panels of 16 output channels of panel_type
    cs_type panel_type
    int64_t panel_value_bytes
    Taps channel_taps, row_taps, column_taps   # what moves values
    int consecutive        # the channels that are read lie one behind the other, from channel_taps.at[0] on
    int block_inside       # depth to space: a block's values are a channel's innermost index, else its outermost
    int64_t input_count
    int64_t *inputs        # rings read; a convolution's second input is its residual
    int64_t output         # ring written


cdef struct Source:
    # Where the network's input comes from: image row y of [begin, end) at data + (y - begin)*row_stride bytes.
    # table NULL: float32; else uint8 through table[c*256 + value], channel c from source channel channel_of[c].
    const char *data
    const float *table
    int64_t channel_of[4]
    int64_t begin, end
    int64_t image_stride, row_stride, pixel_stride, channel_stride   # bytes


cdef struct Sink:
    # Where one output goes: row y at data + (y - begin)*row_stride bytes, float32; rows and columns beyond are dropped.
    char *data
    int64_t begin, rows, columns
    int64_t image_stride, row_stride, pixel_stride, channel_stride   # bytes
    const int64_t *chosen   # channels to write, or NULL for all
    int64_t channels


cdef struct Run:
    const cs_kernels *kernels
    Ring *rings
    const float *zeros      # a row of zeros as long as the longest padded row
    int64_t images
    int64_t threads
    char *scratch
    int64_t scratch_pitch   # bytes of one thread
    Source source
    Sink *sinks


cdef struct Share:
    # Output rows [begin, end) of one step, of which this is part number `part` of `parts`, done by a thread
    # with the scratch number `thread`.
    int64_t begin
    int64_t end
    int64_t part
    int64_t parts
    int64_t thread


ctypedef void (*RowKernel)(const Op *op, const Run *run, const Share *share) noexcept nogil


cdef inline float *ring_row(const Ring *ring, int64_t image, int64_t y) noexcept nogil:
    return ring.base + image * ring.image_pitch + (y % ring.rows) * ring.row_pitch


cdef struct Place:
    # Where an output pixel lies.
    int64_t image
    int64_t row
    int64_t column


cdef struct Patch:
    # The pixels [first, last) of rows [begin, begin + rows) and columns [left, left + width), which are numbered image
    # by image, row by row.
    int64_t begin
    int64_t rows
    int64_t left
    int64_t width
    int64_t first
    int64_t last


cdef inline Place place_of(int64_t pixel, const Patch *patch) noexcept nogil:
    return Place(pixel // (patch.rows * patch.width), patch.begin + pixel // patch.width % patch.rows,
                 patch.left + pixel % patch.width)


cdef inline float *pixel_of(const Ring *ring, Place at) noexcept nogil:
    # The first channel of a pixel.
    return ring_row(ring, at.image, at.row) + at.column * ring.pixel_pitch


cdef inline void part_of(int64_t total, const Share *share, int64_t *begin, int64_t *end) noexcept nogil:
    # The even part [begin, end) of total pieces that a share has to do.
    begin[0] = total * share.part // share.parts
    end[0] = total * (share.part + 1) // share.parts


cdef inline Patch all_pixels(const Run *run, const Share *share, const Ring *y) noexcept nogil:
    # The pixels of a tensor's rows [begin, end), whichever part of them a share has to do.
    cdef int64_t rows = share.end - share.begin
    return Patch(share.begin, rows, 0, y.width, 0, run.images * rows * y.width)


cdef inline Patch patch_of(const Run *run, const Share *share, const Ring *y) noexcept nogil:
    # The part of these pixels that a share has to do: in a step of all rows a block of rows or a number of images, in a
    # band a block of columns, where that is fair. So a thread finds most of what it reads in its own cache, from the
    # step before.
    cdef Patch patch = all_pixels(run, share, y)
    cdef int64_t widest = (y.width + run.threads - 1) // run.threads
    cdef int64_t right
    if run.images % run.threads and patch.rows < y.height and widest * run.threads * 16 <= y.width * 17:
        part_of(y.width, share, &patch.left, &right)
        patch.width = right - patch.left
        patch.last = run.images * patch.rows * patch.width
    else:
        part_of(patch.last, share, &patch.first, &patch.last)
    return patch
