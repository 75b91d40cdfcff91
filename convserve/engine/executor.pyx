"""The executor: walks a plan's steps over one arena in one nogil loop; it can be left and entered between steps."""

import sys

import numpy as np

from convserve.errors import MemoryBudgetError
from convserve.plan.plan import RING_BYTES

from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from convserve.engine.binding cimport POISON_STEP, READ_STEP, WRITE_STEP, ZERO_STEP, Block, Executor, Release, Step
from convserve.engine.team cimport Stay, enter, leave, nanoseconds, run_parts
from convserve.kernels.elementwise cimport poison_rows, zero_padding
from convserve.kernels.rows cimport Op, Ring, Run, Share, Sink, Source

__all__ = ["CANCELLED", "DONE", "NEEDS_ROWS", "WROTE_ROWS", "Execution", "Memory"]

cdef enum Status:
    ALL_DONE          # all steps have run
    ROWS_NEEDED       # the next step reads image rows that the source does not have yet
    ROWS_WRITTEN      # rows of an output have just become final
    WAS_CANCELLED     # cancel() was called
    ROWS_GONE         # the next step reads image rows before those of the source

DONE, NEEDS_ROWS, WROTE_ROWS, CANCELLED = ALL_DONE, ROWS_NEEDED, ROWS_WRITTEN, WAS_CANCELLED

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int MADV_DONTNEED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED


cdef class Memory:
    """Anonymous mapped memory of a fixed number of bytes, given back to the system when it is closed or dropped."""

    cdef void *start
    cdef readonly size_t size_bytes

    def __cinit__(self, size_bytes):
        if size_bytes <= sys.maxsize:
            self.start = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if self.start == NULL or self.start == MAP_FAILED:
            self.start = NULL
            raise MemoryBudgetError(f"the operating system refused {size_bytes:,} bytes for a run")
        self.size_bytes = size_bytes

    def close(self) -> None:
        """Give the memory back; closing twice does nothing."""
        if self.start != NULL:
            munmap(self.start, self.size_bytes)
            self.start = NULL

    def __dealloc__(self):
        if self.start != NULL:
            munmap(self.start, self.size_bytes)


cdef struct Walk:
    # One run's place in the steps.
    Run run
    const Op *ops
    const Step *steps
    const Block *blocks
    const Release *releases
    int64_t block_count
    int64_t block, repeat, step
    const Step *now        # the step in work, and its rows
    int64_t begin, end
    int pause_after_write
    int cancelled
    int64_t last_begin, last_end, last_sink
    int64_t rows_needed
    int64_t *spent   # nanoseconds by operation, or NULL


cdef void do_share(void *arg, int64_t part, int64_t parts, int64_t thread) noexcept nogil:
    cdef Walk *w = <Walk *> arg
    cdef Share share = Share(w.begin, w.end, part, parts, thread)
    w.now.kernel(w.ops + w.now.index, &w.run, &share)


cdef void release(const Walk *w, const Block *block) noexcept nogil:
    """Take pages of mapped weights out of the process; another run that still reads them gets them back by itself."""
    cdef int64_t number
    for number in range(block.first_release, block.first_release + block.release_count):
        madvise(w.releases[number].begin, w.releases[number].size, MADV_DONTNEED)


cdef Status walk(Walk *w) noexcept nogil:
    """Run steps from where the run was left until it has to be left again; return why."""
    cdef const Step *step
    cdef int64_t since = 0
    while w.block < w.block_count:
        step = w.steps + w.blocks[w.block].first + w.step
        w.begin = step.begin + w.repeat * step.advance
        w.end = step.end + w.repeat * step.advance
        if step.kind == READ_STEP and w.end > w.run.source.end:
            w.rows_needed = w.end
            return ROWS_NEEDED
        if step.kind == READ_STEP and w.begin < w.run.source.begin:
            return ROWS_GONE
        if w.spent != NULL:
            since = nanoseconds()
        if step.kind == ZERO_STEP:
            zero_padding(w.run.rings + step.index, w.run.images)
        elif step.kind == POISON_STEP:
            poison_rows(w.run.rings + step.index, w.run.images, w.begin, w.end)
        else:
            w.now = step
            if step.parts == 1:
                do_share(w, 0, 1, 0)
            else:
                run_parts(do_share, w, step.parts, w.run.threads)
            if w.spent != NULL:
                w.spent[step.index] += nanoseconds() - since
        w.step += 1
        if w.step == w.blocks[w.block].count:
            w.step = 0
            w.repeat += 1
            if w.repeat == w.blocks[w.block].repeats:
                release(w, w.blocks + w.block)
                w.repeat = 0
                w.block += 1
        if w.cancelled:
            return WAS_CANCELLED
        if step.kind == WRITE_STEP and w.pause_after_write:
            w.last_sink = w.ops[step.index].size
            w.last_begin, w.last_end = w.begin, w.end
            return ROWS_WRITTEN
    return ALL_DONE


cdef class Execution:
    """One run of an executor over memory of its own: give it a source and sinks, then advance() until DONE.

    Not for use by two threads at once, except cancel(), which any thread may call.
    """

    cdef Walk walk
    cdef readonly Executor executor
    cdef readonly Memory memory
    cdef list kept
    cdef Sink *sinks

    def __cinit__(self, Executor executor, Memory memory):
        plan = executor.plan
        cdef char *arena = <char *> memory.start
        cdef char *scratch = arena + <int64_t> plan.arena_bytes
        cdef Run *run = &self.walk.run
        self.executor, self.memory, self.kept = executor, memory, []
        if sizeof(Ring) != RING_BYTES or memory.size_bytes < plan.arena_bytes + plan.scratch_bytes:
            raise ValueError("the memory of a run is less than its plan says")
        self.sinks = <Sink *> calloc(len(plan.program.sink_rows), sizeof(Sink))
        if self.sinks == NULL:
            raise MemoryBudgetError("the operating system refused memory for a run")
        self.walk.ops, self.walk.steps = executor.ops, executor.steps
        self.walk.blocks, self.walk.block_count = executor.blocks, executor.block_count
        self.walk.releases = executor.releases
        run.kernels = executor.kernels
        run.images, run.threads = plan.images, plan.threads
        run.scratch, run.scratch_pitch = scratch, plan.scratch_pitch
        run.rings = <Ring *> (scratch + <int64_t> plan.scratch_pitch * <int64_t> plan.threads)
        run.zeros = <float *> (arena + <int64_t> plan.zeros_offset)
        run.sinks = self.sinks
        if plan.poison:
            memset(arena, 0xff, plan.arena_bytes)
        memset(<char *> run.zeros, 0, plan.zeros_bytes)
        for tensor in plan.program.tensors:
            self._bind_ring(run.rings + <int64_t> tensor.index, tensor, plan.program.tensors[tensor.root], arena)

    cdef int _bind_ring(self, Ring *ring, tensor, root, char *arena) except -1:
        ring.channels, ring.height, ring.width = tensor.volume.channels, tensor.height, tensor.width
        ring.rows = root.ring_rows
        ring.row_pitch, ring.pixel_pitch = root.row_pitch, root.pixel_pitch
        ring.image_pitch = ring.rows * ring.row_pitch
        ring.pad_left, ring.pad_right = root.pad_left, root.pad_right
        ring.base = <float *> (arena + <int64_t> root.offset) + ring.pad_left * ring.pixel_pitch
        ring.base += <int64_t> tensor.channel_offset
        return 0

    def __dealloc__(self):
        free(self.sinks)
        free(self.walk.spent)

    def set_source(self, rows, *, begin: int = 0, table=None, channel_of=(0, 1, 2, 3)) -> None:
        """Let the image's rows from `begin` on come from an array (images, rows, width, channels), any strides.

        float32 values are taken as they are; uint8 ones go through table, float32 (channels, 256), channel c
        read from source channel channel_of[c].
        """
        cdef Source *source = &self.walk.run.source
        if rows.dtype != (np.float32 if table is None else np.uint8):
            raise ValueError(f"image rows of {rows.dtype}")
        self.kept = [rows, table]
        source.data = <const char *> <uintptr_t> rows.ctypes.data
        source.image_stride, source.row_stride, source.pixel_stride, source.channel_stride = rows.strides
        source.begin, source.end = begin, begin + rows.shape[1]
        source.table = NULL
        if table is not None:
            source.table = <const float *> <uintptr_t> table.ctypes.data
            for c, channel in enumerate(channel_of):
                source.channel_of[<int64_t> c] = channel

    def set_sink(self, int64_t number, rows, *, int64_t begin=0, chosen=None) -> None:
        """Let output `number` go to a float32 array (images, rows, columns, channels), any strides, row `begin` first.

        chosen: int64 channels to write instead of all. The caller keeps both arrays alive.
        """
        cdef Sink *sink = self.sinks + number
        sink.data = <char *> <uintptr_t> rows.ctypes.data
        sink.image_stride, sink.row_stride, sink.pixel_stride, sink.channel_stride = rows.strides
        sink.begin, sink.rows = begin, begin + rows.shape[1]
        sink.columns, sink.channels = rows.shape[2], rows.shape[3]
        sink.chosen = <const int64_t *> <uintptr_t> (0 if chosen is None else chosen.ctypes.data)

    def go_on_with(self, Executor executor) -> None:
        """Continue on the same rings with another executor, at its first step (plan.finish_plan)."""
        plan = executor.plan
        if self.memory.size_bytes != plan.arena_bytes + plan.scratch_bytes:
            raise ValueError("the memory of a run is not what its plan says")
        self.executor = executor
        self.walk.ops, self.walk.steps = executor.ops, executor.steps
        self.walk.blocks, self.walk.block_count = executor.blocks, executor.block_count
        self.walk.releases = executor.releases
        self.walk.block = self.walk.repeat = self.walk.step = 0
        for tensor in plan.program.tensors:
            self._bind_ring(self.walk.run.rings + <int64_t> tensor.index, tensor, plan.program.tensors[tensor.root],
                            <char *> self.memory.start)

    def rows_done(self) -> list:
        """Return how many rows each operation of the plan has produced so far."""
        plan = self.executor.plan
        done = [0] * len(plan.program.operations)
        for position, block in enumerate(plan.blocks[:self.walk.block + 1]):
            begun = position == self.walk.block
            for number, step in enumerate(block.steps):
                repeats = (self.walk.repeat + (number < self.walk.step)) if begun else block.repeats
                if repeats and plan.operation(step) is not None:
                    done[step.index] = max(done[step.index], step.end + (repeats - 1) * step.advance)
        return done

    @property
    def rows_needed(self) -> int:
        """After NEEDS_ROWS: the source must reach at least this row (excluded)."""
        return self.walk.rows_needed

    @property
    def written(self) -> tuple:
        """After WROTE_ROWS: (output number, first row, row behind the last)."""
        return self.walk.last_sink, self.walk.last_begin, self.walk.last_end

    def cancel(self) -> None:
        """Make a running or the next advance() stop after its step; it then returns CANCELLED."""
        self.walk.cancelled = 1

    def seconds_of_operations(self) -> list:
        """Return the seconds that the steps of each operation took so far, barriers included, in timed advances."""
        count = len(self.executor.plan.program.operations)
        return [self.walk.spent[index] * 1e-9 if self.walk.spent != NULL else 0.0 for index in range(count)]

    def advance(self, *, pause_after_write: bool = False, timed: bool = False) -> int:
        """Run steps, without the GIL, until the run is done or has to be left, and return which of the four it is.

        timed: count the time of every operation (seconds_of_operations), at two clock readings a step.
        Raises ModelChangedError where the weights' file is not as it was mapped, before the steps or behind them.
        """
        cdef Status status
        cdef Stay stay
        cdef bint entered
        if timed and self.walk.spent == NULL:
            self.walk.spent = <int64_t *> calloc(len(self.executor.plan.program.operations), sizeof(int64_t))
            if self.walk.spent == NULL:
                raise MemoryBudgetError("the operating system refused memory for a run")
        if self.executor.mapping is not None:
            self.executor.mapping.check()
        self.walk.pause_after_write = pause_after_write
        with nogil:
            entered = enter(self.walk.run.threads, &stay)
            if entered:
                status = walk(&self.walk)
                leave(&stay)
        if not entered:
            raise MemoryBudgetError(f"the operating system refused {self.walk.run.threads} threads for a run")
        if self.executor.mapping is not None:
            self.executor.mapping.check()
        if status == ROWS_GONE:
            raise ValueError(f"image row {self.walk.begin} is needed; the source begins behind it")
        return status
