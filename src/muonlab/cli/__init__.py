"""The command line: `muonlab COMMAND`. One file a group of commands; this one holds the border.

Exit codes: 0 done, 1 a run failed, 2 a mistake in what was asked for,
130 interrupted. A user's mistake is one line on standard error, never a traceback.
"""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from tyro.extras import SubcommandApp

# where a command's function, or its group of commands, is; a function's docstring is its help
COMMANDS: dict[str, tuple[str, str | None]] = {
    "demo": ("demo:demo", None),
    "data": ("data:application", "Corpora: prepare one."),
    "inspect": ("inspect:inspect_recipe", None),
    "train": ("runs:train_recipe", None),
    "resume": ("runs:resume", None),
    "runs": ("runs:list_runs", None),
    "eval": ("models:evaluate_run", None),
    "generate": ("models:generate_from_run", None),
    "export": ("models:export_run", None),
    "study": ("study:application", "The papers' experiments."),
    "claims": ("claims:list_claims", None),
    "optim": ("optim:application", "The optimizer's polynomials."),
    "bench": ("bench:application", "Measurements on this machine."),
    "theory": ("theory:application", "The papers' theorems, executed."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``muonlab`` command: what concerns the whole process, then `run`."""
    from muonlab import machine

    machine.keep_freed_memory()
    warnings.showwarning = _one_line_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    from muonlab.runs import FailedRunError
    from muonlab.train import InterruptedRun

    try:
        _application(arguments[0] if arguments else "").cli(
            prog="muonlab",
            description="Train, compare and run small Mixture-of-Experts language models.",
            args=list(arguments) or ["--help"],
        )
        sys.stdout.flush()
    except (InterruptedRun, KeyboardInterrupt) as stop:
        return _say(str(stop) or "interrupted", 130)
    except FailedRunError as failure:
        return _say(str(failure), 1)
    except BrokenPipeError:  # the reader of our output has left: what is still buffered is lost
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as mistake:
        return _say(str(mistake), 2)
    except SystemExit as parsed:  # --help, or arguments that do not parse
        return parsed.code if isinstance(parsed.code, int) else 2
    return 0


def _application(command: str) -> SubcommandApp:
    """That command alone, or all where there is none of that name.

    The libraries behind all of them take five seconds to import.
    """
    application = SubcommandApp()
    for name in [command] if command in COMMANDS else COMMANDS:
        place, text = COMMANDS[name]
        module, _, attribute = place.partition(":")
        target = getattr(import_module(f"muonlab.cli.{module}"), attribute)
        application.command(target, name=name, help=text)
    return application


def _say(message: str, code: int) -> int:
    print(f"muonlab: {' '.join(message.split())}", file=sys.stderr)
    return code


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"muonlab: warning: {message}", file=sys.stderr)
