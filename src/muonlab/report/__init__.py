"""Runs on disk to tables, figures, and one self-contained page."""

from muonlab.report.comparison import comparison_records, comparison_table, write_comparison
from muonlab.report.frames import Run, read_run, read_runs

__all__ = [
    "Run",
    "comparison_records",
    "comparison_table",
    "read_run",
    "read_runs",
    "write_comparison",
]
