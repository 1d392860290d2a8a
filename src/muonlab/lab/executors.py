"""Where runs are made: worker processes of this machine, or the tasks of a Ray cluster."""

import contextlib
import importlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from muonlab.config import RunConfig, to_dict
from muonlab.cores import usable_cores
from muonlab.errors import UserError
from muonlab.lab.plan import Job
from muonlab.lab.worker import Options, Reply, make_run

ExecutorName = Literal["local", "ray"]
STOP_SECONDS = 120.0  # for a worker to end its step and write a checkpoint


class Executor(Protocol):
    """Makes runs side by side."""

    slots: int

    def start(self, job: Job) -> None:
        """Begin a run; call it only while fewer than ``slots`` are under way."""
        ...

    def wait(self, seconds: float) -> list[tuple[Job, Reply]]:
        """Runs that have ended, as soon as there is one or after ``seconds``."""
        ...

    def stop(self) -> None:
        """Ask every run under way to write a checkpoint and end; `wait` tells when they have."""
        ...


class LocalExecutor:
    """``workers`` processes that live as long as the study, each with ``threads`` threads."""

    def __init__(self, workers: int, options: Options, log: Path) -> None:
        self.slots = workers
        self._options = options
        self._log = log
        self._ended: queue.SimpleQueue[tuple[_Worker, Reply]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []

    def start(self, job: Job) -> None:
        idle = next((worker for worker in self._workers if worker.job is None), None)
        if idle is None:
            idle = _Worker(self._options, self._log, self._ended)
            self._workers.append(idle)
        idle.start(job)

    def wait(self, seconds: float) -> list[tuple[Job, Reply]]:
        with contextlib.suppress(queue.Empty):
            worker, reply = self._ended.get(timeout=seconds)
            if reply.status == "lost":
                self._workers.remove(worker)
                worker.close()
            if worker.job is not None:
                job, worker.job = worker.job, None
                return [(job, reply)]
        return []

    def stop(self) -> None:
        for worker in self._workers:
            worker.close()

    def end(self, *, at_once: bool) -> None:
        """Let every process go; a killed one leaves its last checkpoint."""
        self.stop()
        for worker in self._workers:
            worker.end(0.0 if at_once else STOP_SECONDS)


class _Worker:
    """One worker process, and the thread that listens to it."""

    def __init__(
        self, options: Options, log: Path, ended: "queue.SimpleQueue[tuple[_Worker, Reply]]"
    ) -> None:
        self.job: Job | None = None
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "muonlab.lab.worker", json.dumps(asdict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
                encoding="utf-8",
            )
        self._listener = threading.Thread(target=self._listen, args=(ended,), daemon=True)
        self._listener.start()

    def start(self, job: Job) -> None:
        self.job = job
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died: the listener tells
            order = {"config": to_dict(job.config), "read_test": job.reads_test}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()

    def _listen(self, ended: "queue.SimpleQueue[tuple[_Worker, Reply]]") -> None:
        assert self._process.stdout
        with self._process.stdout as replies:
            for line in replies:
                ended.put((self, Reply(**json.loads(line))))
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        ended.put((self, Reply(status="lost", message=f"its worker ended by {how}")))


class RayExecutor:
    """Every run a Ray task of ``threads`` CPUs, on as many as the cluster offers at once.

    All nodes must see the same directories. Joins the cluster that ``RAY_ADDRESS`` names, or else
    starts Ray on this machine.
    """

    def __init__(self, workers: int | None, options: Options) -> None:
        self._ray: Any = importlib.import_module("ray")
        if not self._ray.is_initialized():
            self._ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        self.slots = workers or max(cpus // options.threads, 1)
        self._options = options
        self._task = self._ray.remote(num_cpus=options.threads, max_retries=0)(_make_run_on_ray)
        self._running: dict[Any, Job] = {}

    def start(self, job: Job) -> None:
        self._running[self._task.remote(job.config, self._options, job.reads_test)] = job

    def wait(self, seconds: float) -> list[tuple[Job, Reply]]:
        done, _ = self._ray.wait(list(self._running), timeout=seconds)
        return [(self._running.pop(task), self._reply(task)) for task in done]

    def stop(self) -> None:
        for task in self._running:
            self._ray.cancel(task)  # an interrupt in the task, as Ctrl-C would be

    def end(self) -> None:
        self._ray.shutdown()

    def _reply(self, task: Any) -> Reply:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.TaskCancelledError:
            return Reply(status="interrupted")
        except self._ray.exceptions.RayError as error:
            return Reply(status="lost", message=str(error).splitlines()[0])


def _make_run_on_ray(config: RunConfig, options: Options, read_test: bool) -> Reply:
    import torch

    torch.set_num_threads(options.threads)
    return make_run(config, options, read_test=read_test)


@contextlib.contextmanager
def open_executor(
    name: ExecutorName, workers: int | None, options: Options, log: Path
) -> Iterator[Executor]:
    """The executor of that name; on leaving, its processes have ended.

    ``workers`` None: as many as the CPUs give ``threads`` each. Raises UserError.
    """
    if name == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UserError("executor ray is not installed; pip install 'muonlab[cluster]'")
        cluster = RayExecutor(workers, options)
        try:
            yield cluster
        finally:
            cluster.end()
        return
    local = LocalExecutor(workers or default_workers(options.threads), options, log)
    at_once = True
    try:
        yield local
        at_once = False
    finally:
        local.end(at_once=at_once)


def default_workers(threads: int) -> int:
    """One for every ``threads`` cores that this process may use."""
    return max(usable_cores() // threads, 1)
