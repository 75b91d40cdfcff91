"""The schedule, found by simulating rows: which operation computes which rows, and when; how high each ring is.

Each segment's sinks ask for their next band; an operation asks its inputs for the rows that it lacks.
The most rows that a tensor held at once (produced, and still needed by somebody) is its ring's height.
Once the pattern repeats, whole periods are skipped, so a schedule does not grow with the image.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from convserve.plan.program import Operation, Program

__all__ = ["Block", "Step", "schedule"]


@dataclass(frozen=True, slots=True)
class Step:
    """Rows [begin, end) of one operation; repetition r of its block computes rows [begin + r*advance, end + r*advance).

    operation is an index into Program.operations; what "Zero" (padding of a ring is cleared) and "Poison"
    (rows of a ring are filled with NaN) name instead is a tensor.
    """

    kind: str
    index: int
    begin: int
    end: int
    advance: int = 0


@dataclass(slots=True)
class Block:
    """Steps that run `repeats` times, belonging to one segment."""

    segment: int
    steps: list[Step]
    repeats: int = 1


class _Simulation:
    """Row counts of every operation while the schedule of one program is made."""

    def __init__(self, program: Program, segment_of: list[int], bands: list[int], *, poison: bool) -> None:
        self.program = program
        self.tensors = program.tensors
        self.segment_of = segment_of
        self.bands = bands
        self.poison = poison
        self.done = [0] * len(program.operations)
        self.limit = [program.rows_of(operation) for operation in program.operations]
        self.steps: list[Step] = []
        self.needs: list[tuple[int, int, int]] = []  # per step: (operation, its input number, rows needed unclipped)
        self.producer: dict[int, Operation] = {}
        self.readers: list[list[tuple[Operation, int]]] = [[] for _ in self.tensors]  # by root
        for operation in program.operations:
            if operation.output >= 0:
                self.producer[operation.output] = operation
            for number, index in enumerate(operation.inputs):
                self.readers[self.tensors[index].root].append((operation, number))
        self.oldest = [0] * len(self.tensors)  # by root: the first row that somebody still needs
        self.newest = [0] * len(self.tensors)  # by root: rows produced so far by any of its parts
        self.sources = {tensor.index: self._sources(tensor.index) for tensor in self.tensors}
        # tiles of Winograd layers that so far held rows only between their layer's two steps; those that hold some now
        self.brief = {op.output for op in program.operations if op.kind == "WinogradInput"}
        self.holding: set[int] = set()

    def _sources(self, index: int) -> list[Operation]:
        # the operations that write a tensor: its own, or those of the parts joined into it
        parts = self.tensors[index].parts
        return [op for part in parts for op in self._sources(part)] if parts else [self.producer[index]]

    def resume(self, done: list[int]) -> None:
        """Begin where each operation has produced done[i] rows."""
        self.done = done.copy()
        for operation in self.program.operations:
            if operation.output >= 0:
                root = self.tensors[operation.output].root
                self.newest[root] = max(self.newest[root], done[operation.index])
        for tensor in self.tensors:
            if tensor.root == tensor.index:
                self._free(tensor.index)
        self.steps = []

    def _needed_rows(self, operation: Operation, number: int, end: int) -> int:
        return operation.vertical[number].reads(0, end)[1]

    def pull(self, operation: Operation, rows: int) -> None:
        """Run the operation until it has produced `rows` rows, and before it whatever it waits for."""
        waiting = [(operation, rows)]
        while waiting:
            operation, rows = waiting[-1]
            begin = self.done[operation.index]
            if begin >= rows:
                waiting.pop()
                continue
            end = min(begin + self.bands[operation.index], self.limit[operation.index])
            lacking = self._lacking(operation, end)
            if lacking:
                waiting.append(lacking)
            else:
                self._emit(operation, begin, end)

    def _lacking(self, operation: Operation, end: int) -> tuple[Operation, int] | None:
        # the first input comes last: between a Winograd layer's two steps nothing else is to run
        for number, index in reversed(list(enumerate(operation.inputs))):
            needed = self._needed_rows(operation, number, end)
            for source in self.sources[index]:
                rows = min(needed, self.limit[source.index])
                if self.done[source.index] < rows:
                    return source, rows
        return None

    def _emit(self, operation: Operation, begin: int, end: int) -> None:
        self.steps.append(Step(operation.kind, operation.index, begin, end))
        for number, _ in enumerate(operation.inputs):
            self.needs.append((operation.index, number, self._needed_rows(operation, number, end)))
        self.done[operation.index] = end
        if operation.output >= 0:
            root = self.tensors[self.tensors[operation.output].root]
            self.newest[root.index] = max(self.newest[root.index], end)
            root.ring_rows = max(root.ring_rows, self.newest[root.index] - self.oldest[root.index])
        read = {self.tensors[index].root for index in operation.inputs}
        for root_index in read:
            self._free(root_index)
        self.brief -= self.holding - read - {operation.output}
        touched = self.brief & (read | {operation.output})
        self.holding = {root for root in touched if self.newest[root] > self.oldest[root]}

    def mark_brief(self) -> None:
        """Tell which rings never hold rows at the same time, and lie in one segment."""
        for root in self.brief:
            self.tensors[root].brief = self.tensors[root].first_use == self.tensors[root].last_use

    def _free(self, root: int) -> None:
        oldest = self.newest[root]
        for reader, number in self.readers[root]:
            begin = self.done[reader.index]
            if begin < self.limit[reader.index]:
                oldest = min(oldest, max(0, reader.vertical[number].reads(begin, begin + 1)[0]))
        before = self.oldest[root]
        if oldest > before:
            self.oldest[root] = oldest
            if self.poison:
                self.steps.append(Step("Poison", root, before, oldest))


def _strides(program: Program) -> list[int]:
    # image rows between two rows of each operation, along its first input, in the smallest unit that makes all whole
    stride_of: dict[int, Fraction] = {}
    strides = []
    for operation in program.operations:
        stride = Fraction(1)
        if operation.inputs:
            source = operation.inputs[0]
            while program.tensors[source].parts:
                source = program.tensors[source].parts[0]
            window = operation.vertical[0]
            stride = stride_of[source] * max(window.stride, 1) / window.repeat
        strides.append(stride)
        if operation.output >= 0:
            stride_of[operation.output] = stride
    unit = math.lcm(*(stride.denominator for stride in strides))
    return [int(stride * unit) for stride in strides]


@dataclass(slots=True)
class _Mark:
    """Where the simulation stood at one moment."""

    steps: int
    needs: int
    done: list[int]
    oldest: list[int]
    newest: list[int]


class _Repetition:
    """Recognises that the simulation is where it was a period before, only some rows further down."""

    def __init__(self, simulation: _Simulation, members: list[Operation], strides: list[int]) -> None:
        self.simulation = simulation
        self.members = members
        self.strides = strides
        touched = {simulation.tensors[index].root for op in members for index in (*op.inputs, op.output) if index >= 0}
        self.roots = sorted(touched)
        # what an earlier segment left is complete: only its oldest row moves
        self.written = {simulation.tensors[op.output].root for op in members if op.output >= 0}
        self.seen: dict[tuple[object, ...], _Mark] = {}

    def _form(self) -> tuple[object, ...]:
        sim = self.simulation
        moving = [op.index for op in self.members if 0 < sim.done[op.index] < sim.limit[op.index]]
        base = sim.done[moving[0]] * self.strides[moving[0]] if moving else 0
        state: list[object] = [(i, sim.done[i] * self.strides[i] - base) for i in moving]
        # outputs that read the same rows: which of them comes next
        state += [sim.done[op.index] % window.repeat for op in self.members for window in op.vertical]
        state += [sim.newest[root] - sim.oldest[root] if sim.oldest[root] else -1 for root in self.written]
        return tuple(state)

    def look(self) -> _Mark | None:
        """Return where the period that just closed began, or None."""
        sim = self.simulation
        form = self._form()
        before = self.seen.get(form)
        self.seen[form] = _Mark(
            len(sim.steps), len(sim.needs), sim.done.copy(), sim.oldest.copy(), sim.newest.copy()
        )
        if before is None or any(self._near_top(root, before) for root in self.roots):
            return None
        return before

    def _near_top(self, root: int, before: _Mark) -> bool:
        # all readers moved on, yet row 0 is still held: only for now
        sim = self.simulation
        if before.oldest[root] or not sim.newest[root]:
            return False
        readers = {reader.index for reader, _ in sim.readers[root]}
        held = any(sim.done[i] == before.done[i] and sim.done[i] < sim.limit[i] for i in readers)
        return sim.oldest[root] > 0 or not held

    def forget(self) -> None:
        """Forget what was seen: rows were skipped."""
        self.seen.clear()


def _skippable(sim: _Simulation, mark: _Mark) -> int:
    # how often the period fits once more before some band or some read would be clipped at the bottom
    moved = [now - then for now, then in zip(sim.done, mark.done, strict=True)]
    most = 1 << 62
    for step in sim.steps[mark.steps :]:
        if step.kind != "Poison" and moved[step.index]:
            most = min(most, (sim.limit[step.index] - step.end) // moved[step.index])
    for index, number, rows in sim.needs[mark.needs :]:
        for source in sim.sources[sim.program.operations[index].inputs[number]]:
            window = sim.program.operations[index].vertical[number]
            reads = moved[index] * window.stride // window.repeat
            if reads:
                # a window that lies wholly in the padding above the image waits for nothing, but not for long
                most = min(most, (sim.limit[source.index] - rows) // reads if rows > 0 else 0)
    return most if most < 1 << 62 else 0


def schedule(
    program: Program, segment_of: list[int], bands: list[int], *, poison: bool = False, done: list[int] | None = None
) -> list[Block]:
    """Return the blocks of steps of a program, and set ring_rows, first_use, last_use and brief of its tensors.

    segment_of: the segment of each operation, never falling. bands: rows of each operation's step.
    poison: add steps that fill rows with NaN once nobody needs them. done: rows that each operation has
    produced already, in a program of one segment whose rings are prepared.
    """
    sim = _Simulation(program, segment_of, bands, poison=poison)
    if done:
        sim.resume(done)
    strides = _strides(program)
    _find_lives(program, segment_of)
    blocks: list[Block] = []
    for segment in range(segment_of[-1] + 1):
        members = [op for op in program.operations if segment_of[op.index] == segment]
        sim.steps, sim.needs = [] if done else _preparations(sim, segment), []
        sinks = [op for op in members if _is_sink(sim, op, segment)]
        repetition = _Repetition(sim, members, strides)
        while unfinished := [op for op in sinks if sim.done[op.index] < sim.limit[op.index]]:
            mark = repetition.look()
            if mark and (count := _skippable(sim, mark)) > 0:
                blocks += _skip(sim, segment, mark, count)
                repetition.forget()
                continue
            sink = min(unfinished, key=lambda op: sim.done[op.index] * strides[op.index])
            sim.pull(sink, sim.done[sink.index] + 1)
        blocks.append(Block(segment, sim.steps))
    _complete_poison(program, blocks)
    sim.mark_brief()
    return [block for block in blocks if block.steps]


def _skip(sim: _Simulation, segment: int, mark: _Mark, count: int) -> list[Block]:
    # the steps since the mark become a block that repeats, and the simulation goes on behind its last repetition
    moved = [now - then for now, then in zip(sim.done, mark.done, strict=True)]
    freed = [now - then for now, then in zip(sim.oldest, mark.oldest, strict=True)]
    grown = [now - then for now, then in zip(sim.newest, mark.newest, strict=True)]
    repeated = [
        replace(step, advance=freed[step.index] if step.kind == "Poison" else moved[step.index])
        for step in sim.steps[mark.steps :]
    ]
    blocks = [Block(segment, sim.steps[: mark.steps]), Block(segment, repeated, count + 1)]
    sim.done = [now + rows * count for now, rows in zip(sim.done, moved, strict=True)]
    sim.oldest = [now + rows * count for now, rows in zip(sim.oldest, freed, strict=True)]
    sim.newest = [now + rows * count for now, rows in zip(sim.newest, grown, strict=True)]
    for tensor in sim.tensors:
        # what a later reader still holds whole grew all the while
        tensor.ring_rows = max(tensor.ring_rows, sim.newest[tensor.index] - sim.oldest[tensor.index])
    sim.steps, sim.needs = [], []
    return blocks


def _complete_poison(program: Program, blocks: list[Block]) -> None:
    # a fresh ring is poisoned whole; its height is known only now
    for block in blocks:
        block.steps = [
            replace(step, end=program.tensors[step.index].ring_rows) if step.end < 0 else step for step in block.steps
        ]


def _find_lives(program: Program, segment_of: list[int]) -> None:
    for operation in program.operations:
        segment = segment_of[operation.index]
        for index in (*operation.inputs, operation.output):
            if index >= 0:
                root = program.tensors[program.tensors[index].root]
                root.first_use = segment if root.first_use < 0 else min(root.first_use, segment)
                root.last_use = max(root.last_use, segment)


def _preparations(sim: _Simulation, segment: int) -> list[Step]:
    steps: list[Step] = []
    for tensor in sim.tensors:
        if tensor.root == tensor.index and tensor.first_use == segment:
            if sim.poison:
                steps.append(Step("Poison", tensor.index, 0, -1))
            if tensor.pad_left or tensor.pad_right:
                steps.append(Step("Zero", tensor.index, 0, 0))
    return steps


def _is_sink(sim: _Simulation, operation: Operation, segment: int) -> bool:
    if operation.output < 0:
        return True
    root = sim.tensors[operation.output].root
    for reader, number in sim.readers[root]:
        if sim.segment_of[reader.index] > segment:
            sources = sim.sources[reader.inputs[number]]
            if any(source.index == operation.index for source in sources):
                return True
    return False
