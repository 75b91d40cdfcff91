"""Bytes that calls hold: reserved before they are taken, so that the process stays under one budget."""

import asyncio
import os
import sys
import time
from collections.abc import Callable

from convserve.errors import ConvserveError, MemoryBudgetError, ServerBusy
from convserve.server.heap import trim_heap

__all__ = ["SPARE_BYTES", "Ledger", "Reservation", "anonymous_bytes"]

SPARE_BYTES = 12 << 20
"""Of a budget, for what nobody reserves: buffers of connections, plans in the making, the interpreter's own."""

LEAST_SURPLUS_BYTES = 1 << 20
"""What the process must take beyond its rest and all reservations for it to be worth while to make it give back."""

BUSY_S = 0.2
AGAIN_S = 0.1
RELIEF_S = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, mapped, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(mapped)) * _PAGE


class Ledger:
    """Reservations under a budget, for use inside one event loop.

    What the process takes when nothing is reserved counts too, and so does what it takes beyond all reservations.
    First come, first served, but whoever holds bytes already and needs more comes before whoever begins; where all that
    hold some wait for more, the youngest is refused.
    """

    def __init__(
        self,
        budget_bytes: int | None = None,
        *,
        used: Callable[[], int] = anonymous_bytes,
        relieve: Callable[[], None] = trim_heap,
    ) -> None:
        """budget_bytes: None for no bound. used: bytes that the process takes; relieve: makes it take fewer."""
        self.budget_bytes = budget_bytes
        self._used, self._relieve = used, relieve
        self._relieved_s = -RELIEF_S
        self._base, self._least_base = 0, sys.maxsize
        self._number = 0
        self._waiting: list[Reservation] = []
        self._holding: set[Reservation] = set()
        self._again: asyncio.TimerHandle | None = None
        self.reserved_bytes = 0
        """The sum of all reservations."""

    @property
    def waiting_bytes(self) -> int:
        """What is waited for."""
        return sum(one.wanted_bytes - one.bytes for one in self._waiting)

    @property
    def capacity_bytes(self) -> int | None:
        """The most that all reservations together may be; None without a budget."""
        if self.budget_bytes is None:
            return None
        if not self.reserved_bytes:
            self._base = self._used()
            self._least_base = min(self._least_base, self._base)
        return max(0, self.budget_bytes - SPARE_BYTES - self._base)

    def room_bytes(self, beside_bytes: int) -> int | None:
        """Return the most that one reservation can hold beside so many bytes; None without a budget."""
        capacity = self.capacity_bytes
        return None if capacity is None else max(1, capacity - beside_bytes)

    def open(self) -> "Reservation":
        """Return a new reservation, of no bytes yet."""
        self._number += 1
        return Reservation(self, self._number)

    def fits(self, more_bytes: int) -> bool:
        """Return whether so many more bytes are free now."""
        capacity = self.capacity_bytes
        if capacity is None:
            return True
        assert self.budget_bytes is not None
        room = self.budget_bytes - SPARE_BYTES - more_bytes
        if self.reserved_bytes + more_bytes <= capacity and self._used() <= room:
            return True
        surplus = self._used() - self._least_base - self.reserved_bytes
        if surplus < LEAST_SURPLUS_BYTES or time.monotonic() - self._relieved_s < RELIEF_S:
            return False
        self._relieve()
        self._relieved_s = time.monotonic()
        return self.reserved_bytes + more_bytes <= (self.capacity_bytes or 0) and self._used() <= room

    def check(self, size_bytes: int) -> None:
        """Raise MemoryBudgetError for a reservation that never fits, ServerBusy for one that does not fit for now."""
        capacity = self.capacity_bytes
        if capacity is None or size_bytes <= capacity:
            return
        assert self.budget_bytes is not None
        most = self.budget_bytes - SPARE_BYTES - self._least_base
        if size_bytes <= most:
            raise ServerBusy("the server's memory is held by what it did last", BUSY_S)
        raise MemoryBudgetError(
            f"the request takes {size_bytes:,} bytes; the server's memory budget leaves {most:,} for requests"
        )

    def _set(self, one: "Reservation", size_bytes: int) -> None:
        self.reserved_bytes += size_bytes - one.bytes
        one.bytes = size_bytes
        (self._holding.add if size_bytes else self._holding.discard)(one)

    def _goes_first(self, one: "Reservation") -> tuple[bool, int]:
        return not one.bytes, one.number

    def _wake(self) -> None:
        while self._waiting:
            first = min(self._waiting, key=self._goes_first)
            if not self.fits(first.wanted_bytes - first.bytes):
                self._break_circle()
                self._look_again()
                return
            self._set(first, first.wanted_bytes)
            self._answer(first)

    def _answer(self, one: "Reservation", error: ConvserveError | None = None) -> None:
        self._waiting.remove(one)
        assert one.granted is not None
        if one.granted.done():
            # cancelled a moment ago: its call gives back what it has
            return
        if error is None:
            one.granted.set_result(None)
        else:
            one.granted.set_exception(error)

    def _look_again(self) -> None:
        # what was given back a moment ago may still be in the process, and no call may come that would look
        if self._waiting and self._again is None:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._again_now)

    def _again_now(self) -> None:
        self._again = None
        if self._waiting and not self._holding:
            first = min(self._waiting, key=self._goes_first)
            try:
                self.check(first.wanted_bytes)
            except ConvserveError as error:
                self._answer(first, error)
        self._wake()

    def _break_circle(self) -> None:
        if self._holding and self._holding <= set(self._waiting):
            youngest = max(self._holding, key=lambda one: one.number)
            text = "the server's memory is held by other requests that wait for more"
            self._answer(youngest, ServerBusy(text, BUSY_S))


class Reservation:
    """What one call holds."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self.number = number
        self.bytes = 0
        """Held now."""
        self.wanted_bytes = 0
        """Waited for, while granted is set."""
        self.granted: asyncio.Future[None] | None = None

    def try_resize(self, size_bytes: int) -> bool:
        """Hold so many bytes from now on if that is possible without waiting; return whether it was."""
        ledger = self._ledger
        if size_bytes > self.bytes:
            ahead = [one for one in ledger._waiting if ledger._goes_first(one) < ledger._goes_first(self)]
            if ahead or not ledger.fits(size_bytes - self.bytes):
                return False
            ledger._set(self, size_bytes)
        elif size_bytes < self.bytes:
            ledger._set(self, size_bytes)
            ledger._wake()
        return True

    async def resize(self, size_bytes: int) -> None:
        """Hold so many bytes from now on; wait until there are more, where it is more.

        Raises MemoryBudgetError where they are more than there ever are, ServerBusy where waiting would not end.
        """
        if self.try_resize(size_bytes):
            return
        ledger = self._ledger
        ledger.check(size_bytes)
        self.wanted_bytes, self.granted = size_bytes, asyncio.get_running_loop().create_future()
        ledger._waiting.append(self)
        ledger._wake()
        try:
            await self.granted
        except asyncio.CancelledError:
            if self in ledger._waiting:
                ledger._waiting.remove(self)
            ledger._wake()
            raise
        finally:
            self.granted = None

    def close(self) -> None:
        """Hold nothing any more."""
        self.try_resize(0)
