"""What a run's config does not say: code, versions, machine, data, warnings, memory."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from muonlab import __version__, machine
from muonlab.config import RunConfig
from muonlab.custom_optimizer import AnyOptimizer, CustomConfig
from muonlab.data import TokenData
from muonlab.model import LanguageModel
from muonlab.runs import now


def manifest(
    config: RunConfig,
    data: TokenData,
    model: LanguageModel,
    optimizer: AnyOptimizer,
    device: torch.device,
) -> dict[str, Any]:
    """Everything about a run that its config does not say."""
    packages = ("torch", "numpy", "tokenizers")
    return {
        "created": now(),
        "fingerprint": config.fingerprint(),
        "git": git_state(),
        "versions": {"muonlab": __version__} | {name: metadata.version(name) for name in packages},
        "machine": machine.describe(device),
        "dtype": machine.resolve_dtype_name(config.train.dtype, device),
        "data_hash": data.data_hash,
        "train_tokens": data.num_tokens("train"),
        "validation_tokens": data.num_tokens("validation"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "muon_parameters": sum(
            p.numel()
            for group in optimizer.param_groups
            for p in group["params"]
            if group.get("algorithm") == "muon"
        ),
        **_custom(config),
        "warnings": [*data.warnings, *config.model.attention.warnings],
    }


def changes_since(facts: dict[str, Any], device: torch.device) -> list[str]:
    """What is no longer as when a run with the manifest ``facts`` began, a sentence each.

    Where one of these has changed, a resumed run need not be bitwise equal to an uninterrupted one.
    """
    machine_now, machine_then = machine.describe(device), facts.get("machine", {})
    pairs = {
        "code (commit)": (facts.get("git", {}).get("sha"), git_state().get("sha")),
        "muonlab": (facts.get("versions", {}).get("muonlab"), metadata.version("muonlab")),
        **{
            name: (machine_then.get(name), machine_now.get(name))
            for name in ("torch", "device", "processor", "gpu", "threads")
        },
    }
    return [
        f"it began with {name} {then} and goes on with {now_}; it may not be bitwise reproducible"
        for name, (then, now_) in pairs.items()
        if then is not None and now_ is not None and then != now_
    ]


def made_by_other_code(manifests: Iterable[Mapping[str, Any]]) -> str:
    """One sentence on finished runs that other code than the present has made; empty if none."""
    manifests = list(manifests)
    if not manifests:
        return ""
    commit_now, others = git_state().get("sha"), Counter[str]()
    for facts in manifests:
        commit, version = facts.get("git", {}).get("sha"), facts.get("versions", {}).get("muonlab")
        if commit and commit_now and commit != commit_now:
            others[f"commit {commit[:9]}"] += 1
        elif version not in (None, __version__):
            others[f"muonlab {version}"] += 1
    if not others:
        return ""
    return (
        f"{others.total()} of {len(manifests)} finished runs were made by other code "
        f"({', '.join(others)}) and are used as they are; delete a run to make it again"
    )


def _custom(config: RunConfig) -> dict[str, Any]:
    """Which source made an optimizer that is not muonlab's own."""
    optimizer = config.optimizer
    if not isinstance(optimizer, CustomConfig):
        return {}
    return {"optimizer_factory": {"factory": optimizer.factory, "sha256": optimizer.sha256}}


def git_state() -> dict[str, str | bool]:
    """Commit and dirty flag of the source tree, empty outside a checkout."""
    here = Path(__file__).parent
    try:
        commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain"])
        sha, changes = (
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"sha": sha.strip(), "dirty": bool(changes.strip())}


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory used so far: of the process on a CPU, of the allocator on a GPU.

    None on Windows, whose processes are not asked.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # ru_maxrss begins there with what the parent process held
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if sys.platform == "win32":
        return None
    import resource  # Windows has no such module

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
