"""The `nst-server` command, and `python -m nst_server`."""

import sys


def main() -> None:
    """Runs the command, or says what it lacks."""
    try:
        from nst_server.main import main as command

        command()
    except ModuleNotFoundError as error:
        if (error.name or "nst").startswith("nst"):
            raise
        sys.exit(f"nst-server needs more than is installed ({error}): pip install '.[server]' in the source folder")


if __name__ == "__main__":
    main()
