"""A hook of the site's build: the committed reports become pages, beside docs/."""

from pathlib import Path

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "results"


def on_files(files: Files, config) -> Files:
    """Add results/<study>/report.md and the pictures that it shows."""
    for report in sorted(RESULTS.glob("*/report.md")):
        for path in (report, *report.parent.rglob("*.png"), *report.parent.rglob("rows.csv")):
            name = f"results/{path.relative_to(RESULTS).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
