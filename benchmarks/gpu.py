"""Everything that wants a GPU, in at most 20 minutes: tests, benchmarks, resumption, a paper's run.

    make gpu                                  on one CUDA GPU, into results/bench/<its name>/
    python -m benchmarks.gpu --dry-run --out DIR    the same parts at toy sizes on the CPU

Each part is a process of its own with a time budget, and leaves one JSON file with the facts of
machine and code. What is there already is not measured again; what fails does not stop the others.
table.md holds all tables; delete a file to measure its part anew.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.gpu_parts import PARTS
from muonlab import machine
from muonlab.manifest import git_state
from muonlab.runs import now


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """``only`` names parts; ``part`` makes one in this process, as the others' processes do."""

    dry_run: bool = False
    out: Path | None = None
    only: tuple[str, ...] = ()
    part: str | None = None


def main(options: Options) -> int:
    device = torch.device("cpu") if options.dry_run else machine.default_device()
    if device.type != "cuda" and not options.dry_run:
        print("make gpu: torch finds no CUDA GPU here; --dry-run runs all parts at toy sizes")
        return 2
    if options.dry_run and options.out is None:
        print("make gpu: --dry-run needs --out, a directory for its toy results")
        return 2
    unknown = set(options.only) - set(PARTS)
    if unknown:
        print(f"make gpu: part {min(unknown)!r} is unknown; legal: {', '.join(PARTS)}")
        return 2
    out = options.out or Path("results/bench") / _slug(torch.cuda.get_device_name(device))
    out.mkdir(parents=True, exist_ok=True)
    if options.part is not None:
        measure(options.part, device, out, tiny=options.dry_run)
        return 0
    failed = []
    for number, name in enumerate(options.only or PARTS, start=1):
        print(f"[{number}/{len(options.only or PARTS)}] {name}: ", end="", flush=True)
        started = time.perf_counter()
        if (out / f"{name}.json").exists():
            print("measured before")
            continue
        problem = run_part(name, options, out)
        print(f"{problem or 'done'}, {time.perf_counter() - started:.0f} s", flush=True)
        if problem:
            failed.append(name)
        write_table(out)
    print(f"{out / 'table.md'}" + (f"; without {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_part(name: str, options: Options, out: Path) -> str | None:
    """Make a part in a process of its own; returns what went wrong, in a few words."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(out)]
    command += ["--dry-run"] if options.dry_run else []
    log = out / f"{name}.log"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=PARTS[name].budget_seconds
            )
        except subprocess.TimeoutExpired:
            return f"took more than its {PARTS[name].budget_seconds} s, see {log}"
    if done.returncode:
        return f"failed, see {log}"
    log.unlink()
    return None


def measure(name: str, device: torch.device, out: Path, *, tiny: bool) -> None:
    """Make a part here and write its file whole."""
    torch.set_default_device(device)
    started = time.perf_counter()
    rows = PARTS[name].measure(device, tiny)
    facts = {
        "part": name,
        "title": PARTS[name].title,
        "date": now(),
        "git": git_state(),
        "machine": machine.describe(device),
        "toy_sizes": tiny,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    aside = out / f".{name}.json"
    aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    aside.rename(out / f"{name}.json")


def write_table(out: Path) -> None:
    """All parts that are there, as Markdown tables."""
    found = [
        json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        for name in PARTS
        if (out / f"{name}.json").exists()
    ]
    if not found:
        return
    facts = ", ".join(f"{key} {value}" for key, value in found[-1]["machine"].items())
    lines = [
        f"# Measured by `make gpu`{', toy sizes' if found[-1]['toy_sizes'] else ''}",
        "",
        facts,
    ]
    for part in found:
        commit = part["git"].get("sha", "unknown")[:7]
        lines += ["", f"## {part['title']}", "", *_markdown(part["rows"]), ""]
        lines += [f"{part['date']}, commit {commit}, {part['seconds']} s."]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |")
    return lines


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
