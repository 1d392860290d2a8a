"""Cores and threads where a container, the affinity or the user sets a limit."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from muonlab import cores

V2_FILES = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}
V1_FILES = {
    "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n",
    "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
    "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        (V2_FILES, math.inf),
        (V2_FILES | {"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (V1_FILES, 3.0),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 8), (2.7, 2), (0.3, 1)])
def test_cores_without_affinity(
    quota: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "cpu_quota", lambda root: quota)
    assert cores.usable_cores() == expected


PROGRAM = """
import os
from muonlab import cores
cores.cpu_quota = lambda root: 1.5
if hasattr(os, "sched_getaffinity"):
    os.sched_getaffinity = lambda process: {0, 1, 2, 3}
os.cpu_count = lambda: 4
cores.fit_threads()
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("chosen", [None, "OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_fit_the_quota_unless_the_user_chose_them(chosen: str | None) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in cores.THREAD_VARIABLES}
    environment = kept if chosen is None else kept | {chosen: "2"}
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == ("1" if chosen is None else "2")
