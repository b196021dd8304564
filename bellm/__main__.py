"""`bellm` and `python -m bellm`: the command line, also for who presses Ctrl-C while it is being imported."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from bellm.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        print("bellm: interrupted; nothing was written.", file=sys.stderr)  # noqa: T201 - typer may not be there yet.
        sys.exit(130)


if __name__ == "__main__":
    main()
