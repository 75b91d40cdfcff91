"""Chooses the micro-kernels: the best instruction set of this machine, or the one that CONVSERVE_ISA names."""

from convserve import settings
from convserve.errors import SettingError

__all__ = ["INSTRUCTION_SETS", "active", "available"]

INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def available() -> tuple:
    """Return the names of the instruction sets that this machine runs, slowest first."""
    return tuple(isa for isa in INSTRUCTION_SETS if cs_kernels_named(isa.encode()) != NULL)


def active() -> str:
    """Return the instruction set in use: CONVSERVE_ISA, else the last of available().

    Raises SettingError where CONVSERVE_ISA names one that this machine has not.
    """
    forced = settings.get("ISA")
    present = available()
    if forced and forced not in present:
        raise SettingError(f"CONVSERVE_ISA is {forced!r}; this machine has {', '.join(present)}")
    return forced or present[len(present) - 1]


cdef const cs_kernels *table(str isa) except NULL:
    cdef const cs_kernels *found = cs_kernels_named(isa.encode())
    if found == NULL:
        raise SettingError(f"the instruction set {isa!r} is not here; this machine has {', '.join(available())}")
    return found
