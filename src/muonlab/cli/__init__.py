"""The command line: `muonlab COMMAND`. One file a group of commands; this one holds the border.

Exit codes: 0 done, 1 a run failed, 2 a mistake in what was asked for,
130 interrupted, 129 the terminal was closed. A user's mistake is one line on standard error,
never a traceback; a mistake of muonlab's own shows its traceback.
"""

import io
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

import tyro
from tyro.extras import SubcommandApp

from muonlab import __version__, allocator, cores
from muonlab.cli.options import overrides_last
from muonlab.errors import FailedRunError, InterruptedRun, UserError
from muonlab.spelling import did_you_mean
from muonlab.streams import LastingStream, silence

# where a command's function, or its group of commands, is; a function's docstring is its help
COMMANDS: dict[str, tuple[str, str | None]] = {
    "demo": ("demo:demo", None),
    "data": ("data:application", "Prepare a corpus."),
    "inspect": ("inspect:inspect_recipe", None),
    "train": ("runs:train_recipe", None),
    "resume": ("runs:resume", None),
    "import": ("runs:import_model", None),
    "runs": ("run_list:list_runs", None),
    "report": ("report:report", None),
    "compare": ("report:compare", None),
    "eval": ("models:evaluate_run", None),
    "generate": ("models:generate_from_run", None),
    "export": ("models:export_run", None),
    "study": ("study:application", "The papers' experiments: list, show, run, report."),
    "claims": ("claims:list_claims", None),
    "optim": ("optim:application", "The optimizer's polynomial schedules."),
    "bench": ("bench:application", "Measure speed and memory on this machine."),
    "theory": ("theory:application", "Check the papers' theorems by experiment."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """What concerns the whole process, then `run`; returns the exit code."""
    allocator.keep_freed_memory()
    cores.fit_threads()
    warnings.showwarning = _one_line_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode
    nowhere = open(os.devnull, "w")  # noqa: PTH123, SIM115 (for the whole process)
    sys.stdout = LastingStream(sys.stdout or nowhere, pipe_errors=True)
    sys.stderr = LastingStream(sys.stderr or nowhere)
    return run(sys.argv[1:] if arguments is None else arguments)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    try:
        for argument in arguments:
            _check_text(argument)
        if list(arguments) == ["--version"]:
            print(_version())
        else:
            if arguments and arguments[0] not in COMMANDS and arguments[0][:1] != "-":
                raise UserError(
                    f"command {arguments[0]!r} is unknown; "
                    f"{did_you_mean(arguments[0], COMMANDS)}legal: {', '.join(COMMANDS)} "
                    f"(`muonlab --help` says what they do)"
                )
            if arguments and arguments[0] in ("train", "inspect", "data"):
                arguments = overrides_last(arguments)
            _application(arguments[0] if arguments else "").cli(
                prog="muonlab",
                description="Train, compare and run small Mixture-of-Experts language models. "
                "`muonlab COMMAND --help` explains a command.",
                args=arguments or ["--help"],
                # help says "PATH", not "{None}|PATH", and "--watch" without "--no-watch"
                config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
            )
        sys.stdout.flush()
    except InterruptedRun as stop:
        return say(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return say("interrupted", 130)
    except FailedRunError as failure:
        return say(str(failure), 1)
    except BrokenPipeError:  # the reader of our output has left: what is still buffered is lost
        silence(sys.stdout)
    except (UserError, OSError) as mistake:
        return say(str(mistake), 2)
    except SystemExit as parsed:  # --help, or arguments that do not parse
        if parsed.code is None or isinstance(parsed.__context__, BrokenPipeError):
            return 0  # at a broken pipe rich ends with 1, after it has dealt with the pipe
        return parsed.code if isinstance(parsed.code, int) else 2
    return 0


def say(message: str, code: int) -> int:
    """One line on standard error; returns the exit code."""
    print(f"muonlab: {' '.join(message.split())}", file=sys.stderr)
    return code


def _application(command: str) -> SubcommandApp:
    """That command alone, or all where there is none of that name.

    No module of commands imports torch before its command runs, so that help is quick.
    """
    application = SubcommandApp()
    alone = command in COMMANDS
    for name in [command] if alone else COMMANDS:
        place, text = COMMANDS[name]
        module, _, attribute = place.partition(":")
        target = getattr(import_module(f"muonlab.cli.{module}"), attribute)
        if not alone:  # a list says a sentence of each
            text = text or target.__doc__.partition("\n\n")[0]
        application.command(target, name=name, help=text)
    return application


def _check_text(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{argument!r} is not UTF-8; arguments and names of files must be"
        ) from None


def _version() -> str:
    return f"muonlab {__version__}, torch {version('torch')}, Python {platform.python_version()}"


def _one_line_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"muonlab: warning: {message}", file=sys.stderr)
