# A mapped file, whose state the executor asks for.


cdef class Mapping:
    cdef char *start
    cdef readonly size_t size_bytes
    cdef int descriptor     # of its own, so that it knows the file whatever its name is by now
    cdef long place         # in the table of what is guarded, or -1
    cdef long long size_then, seconds_then, nanoseconds_then
    cdef object listener
    cdef bint is_whole(self) noexcept nogil
