/* Stands in front of the C library's allocator: counts calls, refuses one of them, keeps the balance of what is held.
 *
 * Loaded by LD_PRELOAD (tests/allocations.py). A call belongs to the shared object that its return address lies in.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *old);

static char place[256];      /* part of a shared object's path; empty: every one */
static size_t least;         /* calls for fewer bytes do not count */
static long refused;         /* number of the call that fails, from 1; 0: none */
static long counting, calls;

/* Memory taken from the place and not given back, whoever gives it back; a lost entry would show as a leak that went. */
#define SLOTS (1 << 14)
static void *kept[SLOTS];
static long keeping, held;

static int from_place(const void *address)
{
    Dl_info info;
    return !place[0] || (dladdr(address, &info) && info.dli_fname && strstr(info.dli_fname, place));
}

/* Returns whether a call has to fail. */
static int counted(const void *address, size_t bytes)
{
    if (!__atomic_load_n(&counting, __ATOMIC_SEQ_CST) || bytes < least || !from_place(address))
        return 0;
    const long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (number != refused)
        return 0;
    errno = ENOMEM;
    return 1;
}

static void **slot_of(void *memory, void *content)
{
    const uintptr_t first = (uintptr_t)memory >> 4;
    for (uintptr_t i = 0; i < 16; i++)
        if (kept[(first + i) % SLOTS] == content)
            return kept + (first + i) % SLOTS;
    return 0;
}

static void *taken(const void *address, void *memory)
{
    if (!__atomic_load_n(&keeping, __ATOMIC_SEQ_CST) || !memory || memory == MAP_FAILED || !from_place(address))
        return memory;
    void *nothing = 0, **slot;
    while ((slot = slot_of(memory, 0)))
        if (__atomic_compare_exchange_n(slot, &nothing, memory, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            __atomic_add_fetch(&held, 1, __ATOMIC_SEQ_CST);
            break;
        } else
            nothing = 0;
    return memory;
}

static void given(void *memory)
{
    if (!__atomic_load_n(&keeping, __ATOMIC_SEQ_CST) || !memory)
        return;
    void **slot = slot_of(memory, memory);
    if (slot) {
        *slot = 0;
        __atomic_add_fetch(&held, -1, __ATOMIC_SEQ_CST);
    }
}

#define HERE __builtin_return_address(0)

void *malloc(size_t size)
{
    return counted(HERE, size) ? 0 : taken(HERE, __libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return counted(HERE, count * size) ? 0 : taken(HERE, __libc_calloc(count, size));
}

void *realloc(void *old, size_t size)
{
    if (counted(HERE, size))
        return 0;
    given(old);
    return taken(HERE, __libc_realloc(old, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return counted(HERE, size) ? 0 : taken(HERE, __libc_memalign(alignment, size));
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    if (counted(HERE, size))
        return ENOMEM;
    *memory = taken(HERE, __libc_memalign(alignment, size));
    return *memory ? 0 : ENOMEM;
}

void free(void *old)
{
    given(old);
    __libc_free(old);
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    if (counted(HERE, size))
        return MAP_FAILED;
    return taken(HERE, (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset));
}

/* the name under which callers with 64-bit file offsets know it */
void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t offset)
{
    if (counted(HERE, size))
        return MAP_FAILED;
    return taken(HERE, (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset));
}

int munmap(void *at, size_t size)
{
    given(at);
    return (int)syscall(SYS_munmap, at, size);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (counted(HERE, SIZE_MAX))
        return EAGAIN;
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
    return next(thread, attributes, start, argument);
}

/* From now on the calls from a place are counted, of which the number `fails` fails; the balance is kept. */
void allocations_watch(const char *from, size_t least_bytes, long fails)
{
    snprintf(place, sizeof place, "%s", from);
    least = least_bytes;
    refused = fails;
    __atomic_store_n(&calls, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&keeping, 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&counting, 1, __ATOMIC_SEQ_CST);
}

/* Stops counting and refusing; returns the calls counted. */
long allocations_stop(void)
{
    __atomic_store_n(&counting, 0, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&calls, __ATOMIC_SEQ_CST);
}

/* Returns the pieces of memory taken from the place and not given back since the first watch. */
long allocations_held(void)
{
    return __atomic_load_n(&held, __ATOMIC_SEQ_CST);
}
