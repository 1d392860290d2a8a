"""The `muonlab` command, also ``python -m muonlab``: what may go wrong before it can parse."""

import sys


def main() -> None:
    """Run the command line of this process; never returns."""
    try:
        from muonlab import cli

        code = cli.main()
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.partition(".")[0] == "muonlab":
            raise
        print(
            f"muonlab: the command needs {missing.name}, which is not installed: "
            f"pip install 'muonlab[lab]'",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:  # while the command's modules are imported
        print("muonlab: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
