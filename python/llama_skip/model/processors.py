"""How many processors this process may use: those of its affinity, and what its control group grants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def n_processors() -> int:
    """Return the processors to spread work over, at least one."""
    n_own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([n_own, *quotas()])))


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the processors that each control group of this process grants, of Linux's version 1 and 2."""
    for kinds, place in _groups(root / "proc/self/cgroup"):
        mount = root / "sys/fs/cgroup" / ("cpu" if kinds else "")
        group = mount / place
        for folder in [group, *group.parents]:
            if quota := _quota(folder):
                yield quota
            if folder == mount:
                break


def _groups(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the controllers and the path of each hierarchy with processors; version 2 names none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if not kinds or "cpu" in kinds.split(","):
            yield kinds, place.lstrip("/")


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # none, or "max"
        return None
