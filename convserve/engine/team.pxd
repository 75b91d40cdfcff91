from libc.stdint cimport int64_t

ctypedef void (*Region)(void *arg, int64_t thread) noexcept nogil

cdef int64_t run_region(Region region, void *arg, int64_t threads) noexcept nogil
cdef void barrier(int64_t threads) noexcept nogil
