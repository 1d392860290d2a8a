"""All benchmarks in turn, each in a process of its own. ``python -m benchmarks.run``"""

import subprocess
import sys

BENCHMARKS = ("train_step", "optimizer", "attention", "decode", "study")


def main() -> None:
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
