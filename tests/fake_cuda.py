"""Run as a program: training steps on FakeTensors of "cuda", and what they read on the host.

    python tests/fake_cuda.py RECIPE [field=value …]

Shapes, dtypes and devices are those of a GPU; nothing is computed. Prints one JSON object: for each
update how often the host would have waited for the GPU, by operation and place, and which state
tensors of the optimizer are on another device than the parameters.
"""

import collections
import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")


def build_guard() -> Path | None:
    """Compile the device that does nothing, once; None where torch has its own.

    Raises OSError where it cannot be compiled.
    """
    spec = importlib.util.find_spec("torch")  # found, not imported
    assert spec is not None
    assert spec.origin is not None
    torch_directory = Path(spec.origin).parent
    libraries = torch_directory / "lib"
    if (libraries / "libtorch_cuda.so").exists():
        return None
    facts = (SOURCE.read_text(), (torch_directory / "version.py").read_text())
    key = hashlib.sha256("".join(facts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "muonlab"
    library = cache / f"fake-cuda-{key}.so"
    if library.exists():
        return library
    compiler = shutil.which("c++")
    if compiler is None:
        raise OSError("there is no C++ compiler")
    cache.mkdir(parents=True, exist_ok=True)
    aside = library.with_suffix(f".{os.getpid()}")
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(aside)]
    command += [f"-I{torch_directory / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
    done = subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"the compiler failed: {done.stderr.strip().splitlines()[0]}")
    aside.replace(library)
    return library


def main(recipe: str, *overrides: str) -> dict[str, Any]:
    """Two updates of ``recipe`` in bf16 through the trainer's own `training_step`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from muonlab import machine, optim, recipes
    from muonlab.config import override
    from muonlab.optim.qk_clip import QKClip
    from muonlab.train import training_step

    device = torch.device("cuda", 0)
    reads: collections.Counter[str] = collections.Counter()
    waiting = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    copies = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

    def note(what: str) -> None:
        places = [f for f in traceback.extract_stack() if "/muonlab/" in f.filename]
        where = f"{Path(places[-1].filename).name}: {places[-1].line}" if places else "backward"
        reads[f"{what}, {where}"] += 1

    class Reads(TorchDispatchMode):
        """Notes every operation for which the host would wait for the GPU; a value read is 1."""

        backward_operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            self.backward_operations += torch._C._current_graph_task_id() >= 0
            if func is torch.ops.aten._local_scalar_dense.default:
                note("item")
                return 1.0 if args[0].is_floating_point() else args[0].dtype == torch.bool or 1
            if func is torch.ops.aten.index.Tensor:  # its shape depends on masks alone
                if any(i is not None and i.dtype == torch.bool for i in args[1]):
                    note("mask")
            elif waiting & set(func.tags):
                note(str(func))
            if func in copies:
                source, target = (args[1], args[0]) if func is copies[1] else (args[0], None)
                end = target.device if target is not None else kwargs.get("device", source.device)
                if source.device.type == "cuda" and torch.device(end).type == "cpu":
                    note("copy to the host")
            return func(*args, **kwargs)

    def tolist(self: FakeTensor) -> list[float]:
        note("tolist")
        return [1.0 if self.is_floating_point() else 1] * self.numel()

    class Generator(torch.Generator):
        """A CPU's: there is none for this device."""

        def __new__(cls, device: object = None) -> "Generator":
            return super().__new__(cls)

    class RandomBatches:
        """In place of `muonlab.train.Batches`."""

        def __init__(self) -> None:
            self.device = device

        def take(self, step: int) -> torch.Tensor:
            shape = (config.train.batch_size, config.train.sequence_length + 1)
            return torch.zeros(shape, dtype=torch.int64, device=device)

        def prepare(self, step: int) -> None:
            pass

    class Stopwatch:
        def __init__(self, device: object) -> None:
            pass

        def stop(self) -> float:
            return 1.0

    FakeTensor.tolist = tolist
    torch.Generator = Generator
    machine.Stopwatch = Stopwatch
    for module in [m for name, m in sys.modules.items() if name.startswith(optim.__name__)]:
        if hasattr(module, "bf16_is_native"):
            vars(module)["bf16_is_native"] = lambda device: True

    config = override(getattr(recipes, recipe)(), list(overrides))
    batches: Any = RandomBatches()
    row: dict[str, float] = {}
    counted = []
    with FakeTensorMode():
        model = config.model.build(0, device).train()
        model.compute_dtype = torch.bfloat16
        optimizer = config.optimizer.build(model)
        qk_clip = QKClip(model, config.optimizer.qk_clip)
        with Reads() as mode:
            for step in range(2):
                reads.clear()
                row = training_step(config, model, optimizer, qk_clip, batches, step)
                counted.append(dict(reads))
        misplaced = [
            name
            for state in optimizer.state.values()
            for name, value in state.items()
            if value.device != device
        ]
    return {
        "reads": counted,
        "backward_operations": mode.backward_operations,
        "misplaced": misplaced,
        "metrics": sorted(row),
    }


if __name__ == "__main__":
    guard = build_guard()
    if guard is not None:
        ctypes.CDLL(str(guard), mode=ctypes.RTLD_GLOBAL)  # before torch is imported
    print(json.dumps(main(*sys.argv[1:])))
