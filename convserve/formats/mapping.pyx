"""Mapped files: what is read behind the end of one that was cut off is zero, and known to be, instead of SIGBUS.

While files are mapped, a handler of SIGBUS looks for the address among them. There it lays pages of zeros over the rest
of that mapping, marks it, and lets the thread go on; whoever computed with it asks for the mark before he believes the
result. A fault anywhere else goes to the handler of before, or ends the process as it would have. With the last mapping
the handler of before comes back, unless somebody has put another one over ours, which is left there.
CONVSERVE_CATCH_SIGBUS=off does without.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo

from convserve import settings
from convserve.errors import ModelChangedError

__all__ = ["Mapping"]

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>

    /* Written by threads that map and unmap, read by the handler on any other, so without locks. A place is taken from
     * the time its start is set until it is 0 again; the size is valid as long as the start is. */
    #define CS_MOST_MAPPINGS 4096
    typedef struct { uintptr_t start; size_t size; int taken, was_cut; } cs_mapping;
    static cs_mapping cs_mappings[CS_MOST_MAPPINGS];
    static long cs_mappings_used;    /* places behind it were never taken */
    static uintptr_t cs_page_bytes;
    static struct sigaction cs_action_before;

    #define cs_load(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
    #define cs_store(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)

    static int cs_lay_zeros(uintptr_t at)
    {
        for (long i = 0; i < cs_load(&cs_mappings_used); i++) {
            cs_mapping *one = cs_mappings + i;
            uintptr_t start = cs_load(&one->start);
            size_t size = cs_load(&one->size);
            if (!start || at - start >= size || cs_load(&one->start) != start)
                continue;
            uintptr_t page = at & ~(cs_page_bytes - 1);
            /* before there are zeros that another thread might read and believe */
            cs_store(&one->was_cut, 1);
            return mmap((void *) page, start + size - page, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                != MAP_FAILED;
        }
        return 0;
    }

    static void cs_on_bus_error(int number, siginfo_t *info, void *context)
    {
        int error = errno;
        /* a code of 0 or below is a signal that somebody sent, without an address */
        if (info->si_code > 0 && cs_lay_zeros((uintptr_t) info->si_addr)) {
            errno = error;
            return;
        }
        if (cs_action_before.sa_flags & SA_SIGINFO) {
            cs_action_before.sa_sigaction(number, info, context);
        } else if (cs_action_before.sa_handler != SIG_DFL && cs_action_before.sa_handler != SIG_IGN) {
            cs_action_before.sa_handler(number);
        } else if (info->si_code > 0 || cs_action_before.sa_handler == SIG_DFL) {
            /* the fault comes again, a signal that was sent has to be sent again */
            signal(number, SIG_DFL);
            if (info->si_code <= 0)
                raise(number);
        }
        errno = error;
    }

    static int cs_is_ours(void)
    {
        struct sigaction now;
        return !sigaction(SIGBUS, NULL, &now) && now.sa_flags & SA_SIGINFO && now.sa_sigaction == cs_on_bus_error;
    }

    static pthread_mutex_t cs_counting = PTHREAD_MUTEX_INITIALIZER;
    static long cs_guarded;
    static int cs_installed;

    static long cs_guard(void *start, size_t size)
    {
        long i;
        for (i = 0; i < CS_MOST_MAPPINGS && __atomic_exchange_n(&cs_mappings[i].taken, 1, __ATOMIC_SEQ_CST); i++) {}
        if (i == CS_MOST_MAPPINGS)
            return -1;
        cs_store(&cs_mappings[i].was_cut, 0);
        cs_store(&cs_mappings[i].size, size);
        cs_store(&cs_mappings[i].start, (uintptr_t) start);
        pthread_mutex_lock(&cs_counting);
        if (cs_mappings_used <= i)
            cs_store(&cs_mappings_used, i + 1);
        if (!cs_guarded++ && !cs_installed) {
            struct sigaction action;
            cs_page_bytes = (uintptr_t) sysconf(_SC_PAGESIZE);
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            action.sa_sigaction = cs_on_bus_error;
            sigemptyset(&action.sa_mask);
            cs_installed = !sigaction(SIGBUS, NULL, &cs_action_before) && !sigaction(SIGBUS, &action, NULL);
        }
        pthread_mutex_unlock(&cs_counting);
        return i;
    }

    static void cs_unguard(long i)
    {
        cs_store(&cs_mappings[i].start, 0);
        cs_store(&cs_mappings[i].taken, 0);
        pthread_mutex_lock(&cs_counting);
        if (!--cs_guarded && cs_installed && cs_is_ours())
            cs_installed = sigaction(SIGBUS, &cs_action_before, NULL);
        pthread_mutex_unlock(&cs_counting);
    }

    static int cs_was_cut(long i) { return cs_load(&cs_mappings[i].was_cut); }

    static void cs_lock_for_fork(void) { pthread_mutex_lock(&cs_counting); }
    static void cs_unlock_after_fork(void) { pthread_mutex_unlock(&cs_counting); }

    static int cs_map_file(int descriptor, size_t size, char **start)
    {
        *start = mmap(NULL, size, PROT_READ, MAP_SHARED, descriptor, 0);
        return *start != MAP_FAILED;
    }

    static int cs_file_state(int descriptor, long long *size, long long *seconds, long long *nanoseconds)
    {
        struct stat found;
        if (fstat(descriptor, &found) || !S_ISREG(found.st_mode))
            return 0;
        *size = found.st_size;
        *seconds = found.st_mtim.tv_sec;
        *nanoseconds = found.st_mtim.tv_nsec;
        return 1;
    }

    static int cs_own_descriptor(int descriptor) { return fcntl(descriptor, F_DUPFD_CLOEXEC, 3); }
    """
    long cs_guard(void *, size_t)
    void cs_unguard(long)
    int cs_was_cut(long)
    void cs_lock_for_fork()
    void cs_unlock_after_fork()
    int cs_map_file(int, size_t, char **)
    int cs_file_state(int, long long *, long long *, long long *)
    int cs_own_descriptor(int)
    int munmap(void *, size_t)
    int close(int)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)


cdef class Mapping:
    """The bytes of an open regular file that is not empty, as a read-only buffer; unmapped when nobody views them."""

    def __cinit__(self, int descriptor):
        """Map what the file has by now. Raises OSError where the system refuses, or the file is none of that kind."""
        self.place, self.descriptor = -1, -1
        if not cs_file_state(descriptor, &self.size_then, &self.seconds_then, &self.nanoseconds_then):
            raise OSError("it is no regular file")
        if self.size_then < 1:
            raise OSError("it is empty")
        self.descriptor = cs_own_descriptor(descriptor)
        if self.descriptor < 0 or not cs_map_file(self.descriptor, self.size_then, &self.start):
            self.start = NULL
            raise OSError(f"the operating system refused to map its {self.size_then:,} bytes")
        self.size_bytes = self.size_then
        if settings.get("CATCH_SIGBUS") == "on":
            self.place = cs_guard(self.start, self.size_bytes)

    def __dealloc__(self):
        if self.place >= 0:
            cs_unguard(self.place)
        if self.start != NULL:
            munmap(self.start, self.size_bytes)
        if self.descriptor >= 0:
            close(self.descriptor)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a mapped file is read-only")
        PyBuffer_FillInfo(buffer, self, self.start, self.size_bytes, True, flags)

    @property
    def was_cut(self) -> bool:
        """Whether somebody read what the file does not have any more, or what its disk does not give, and got zeros."""
        return self.place >= 0 and cs_was_cut(self.place) != 0

    cdef bint is_whole(self) noexcept nogil:
        cdef long long size, seconds, nanoseconds
        if self.place >= 0 and cs_was_cut(self.place):
            return False
        if not cs_file_state(self.descriptor, &size, &seconds, &nanoseconds):
            return False
        return (size == self.size_then and seconds == self.seconds_then
                and nanoseconds == self.nanoseconds_then)

    @property
    def is_intact(self) -> bool:
        """Whether the file is as it was mapped; one that was renamed, replaced by renaming or removed is."""
        return self.is_whole()

    def check(self) -> None:
        """Raise ModelChangedError where the file is not as it was mapped, and tell the listener."""
        if not self.is_whole():
            if self.listener is not None:
                self.listener()
            raise ModelChangedError(
                "the file of the network's weights was written to or cut off while it was in use; "
                "the model has to be loaded again"
            )

    def listen(self, listener) -> None:
        """Have check() call this, on its own thread, before it raises."""
        self.listener = listener


pthread_atfork(cs_lock_for_fork, cs_unlock_after_fork, cs_unlock_after_fork)
