"""How many CPU cores this process may use. Imports no torch."""

import os
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """CPU cores that this process may use: by its affinity and its container's quota, at least 1.

    A quota of 1.5 cores counts as one: threads that wait for a stopped one gain nothing.
    """
    return max(1, int(min(_cores_of_affinity(), cpu_quota(Path("/")))))


def fit_threads() -> None:
    """Give torch no more threads than there are `usable_cores`; call it before torch is imported.

    torch sees the affinity of a process, but not the quota of its container. This is an
    application's choice: the CLI makes it, the library never does. Where the user has set
    OMP_NUM_THREADS or MKL_NUM_THREADS, that holds.
    """
    chosen = any(os.environ.get(name) for name in THREAD_VARIABLES)
    if not chosen and usable_cores() < _cores_of_affinity():
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())


def cpu_quota(root: Path) -> float:
    """Cores that the control groups of this process allow (Linux); infinity without a limit.

    ``root`` is where the file system begins: "/".
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    quotas = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one hierarchy, in which each ancestor may set a limit
            base = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            base = root / "sys/fs/cgroup/cpu"
        else:
            continue
        names = [name for name in path.split("/") if name]
        groups = [base.joinpath(*names[:depth]) for depth in range(len(names) + 1)]
        quotas += [_quota_of(group) for group in groups]
    return min(quotas)


def _cores_of_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # neither macOS nor Windows has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()  # "max 100000" without a limit
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()  # -1 without a limit
            period = (group / "cpu.cfs_period_us").read_text()
        cores = float(quota) / float(period)
    except (OSError, ValueError):
        return float("inf")
    return cores if cores > 0 else float("inf")
