"""The `nst-server` command, and `python -m nst_server`."""

import sys


def main() -> None:
    """Runs the command, or says what it lacks."""
    try:
        from nst_server.main import main as command
    except ModuleNotFoundError as error:
        sys.exit(f"nst-server needs more than the client does ({error}): pip install '.[server]' in the source folder")
    command()


if __name__ == "__main__":
    main()
