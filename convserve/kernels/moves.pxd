from convserve.kernels.rows cimport Op, Run, Share

cdef void sample_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void depth_to_space_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
cdef void space_to_depth_rows(const Op *op, const Run *run, const Share *share) noexcept nogil
