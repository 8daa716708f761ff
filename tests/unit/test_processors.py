"""How many processors may be used, from files as Linux writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llama_skip.model.processors import n_processors, quotas

V1 = "/sys/fs/cgroup/cpu"
V2 = "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {f"{V2}/cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/\n", {f"{V2}/cpu.max": "max 100000\n"}, []),
        ("0::/a/b\n", {f"{V2}/a/b/cpu.max": "max 100000\n", f"{V2}/a/cpu.max": "50000 100000\n"}, [0.5]),
        ("0::/gone\n", {f"{V2}/cpu.max": "300000 100000\n"}, [3.0]),
        (
            "4:memory:/x\n2:cpu,cpuacct:/x\n",
            {f"{V1}/x/cpu.cfs_quota_us": "200000\n", f"{V1}/x/cpu.cfs_period_us": "100000\n"},
            [2.0],
        ),
        ("1:cpu:/\n0::/\n", {f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, []),
        ("", {}, []),
        (None, {}, []),
    ],
)
def test_quotas(tmp_path: Path, groups: str | None, files: dict[str, str], expected: list[float]) -> None:
    if groups is not None:
        files = {**files, "/proc/self/cgroup": groups}
    for name, text in files.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(quotas(tmp_path)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_affinity_counts() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from llama_skip.model.params import thread_counts; print(thread_counts(None, None))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 1)\n"


def test_at_least_one() -> None:
    assert 1 <= n_processors() <= (os.cpu_count() or 1)
