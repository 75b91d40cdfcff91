# What every row kernel is given: rings of rows, one operation, one run; and the few lines they share.
from libc.stdint cimport int64_t

from convserve.kernels.dispatch cimport cs_kernels


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


cdef struct Op:
    # One operation of the network; unused fields are 0.
    int kind
    int relu
    int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w
    int64_t pad_top, pad_left, pad_bottom, pad_right
    int64_t group
    int packed             # convolution: copy the windows of a tile into rows first
    int count_include_pad
    int64_t size, below    # LRN's window, and how far it begins below a channel
    float scale, beta, offset
    const float *weights
    const float *bias
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


cdef inline Place place_of(int64_t pixel, int64_t begin, int64_t rows, int64_t width) noexcept nogil:
    # Pixels of the rows [begin, begin + rows) are numbered image by image, row by row.
    return Place(pixel // (rows * width), begin + pixel // width % rows, pixel % width)


cdef inline float *pixel_of(const Ring *ring, Place at) noexcept nogil:
    # The first channel of a pixel.
    return ring_row(ring, at.image, at.row) + at.column * ring.pixel_pitch


cdef inline void part_of(int64_t total, const Share *share, int64_t *begin, int64_t *end) noexcept nogil:
    # The even part [begin, end) of total pieces that a share has to do.
    begin[0] = total * share.part // share.parts
    end[0] = total * (share.part + 1) // share.parts
