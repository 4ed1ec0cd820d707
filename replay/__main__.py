"""The command `replay`: a shell over the library, which needs the extra `workbench`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the base install, which only shares SQL and records, says what is missing."""
    try:
        from replay.cli import run_cli
    except ModuleNotFoundError as missing:
        sys.exit(
            f"replay: {missing.name} is not installed. The command needs the workbench: "
            "pip install 'route-replay[workbench]'"
        )
    except KeyboardInterrupt:  # before there was a command
        sys.stderr.write("replay: stopped before its end; the same command begins again\n")
        sys.exit(130)
    sys.exit(run_cli())


if __name__ == "__main__":
    main()
