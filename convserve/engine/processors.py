"""The processors that this process may use: its affinity mask, and what cgroups of both versions leave of them."""

import math
import os
from functools import lru_cache
from pathlib import Path

__all__ = ["affinity", "cgroup_limit", "quota"]


def affinity() -> frozenset[int]:
    """Return the numbers of the processors on which the calling thread may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cgroup_limit(root: Path = Path("/")) -> float | None:
    """Return the processors that the process's cgroups allow together, such as 1.5; None where none sets a limit.

    Read from proc/self/cgroup and sys/fs/cgroup below root, in version 2 (cpu.max) and 1 (cpu.cfs_quota_us): each
    group's limit, and that of the groups around it, of which the smallest holds.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        mounts = ("", "unified") if not controllers else (controllers, "cpu") if "cpu" in controllers.split(",") else ()
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            # a path that leads out of the mount, or was written outside a container, has only its top here
            parts = [part for part in path.split("/") if part] if ".." not in path else []
            limits += [_limit_of(top.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_of(group: Path) -> float | None:
    # of one group, None where it has none
    for read in (
        lambda: (group / "cpu.max").read_text(encoding="ascii").split()[:2],
        lambda: [(group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")],
    ):
        try:
            allowed, period = read()
            limit = int(allowed) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
        if limit > 0:
            return limit
    return None


@lru_cache(maxsize=8)
def quota(mask: frozenset[int]) -> int | None:
    """Return the cgroups' limit rounded up, None without one; read when a mask is first seen."""
    limit = cgroup_limit()
    return None if limit is None else max(1, math.ceil(limit))
