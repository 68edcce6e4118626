"""The `nst` command."""

import os
import signal
import sys
from types import FrameType

import click

from nst_client.cli.info import info
from nst_client.cli.jobs import jobs
from nst_client.cli.plugins import PluginGroup
from nst_client.cli.stylize import stylize
from nst_client.errors import NstError

INTERRUPTED = 130


@click.group(cls=PluginGroup, commands=[stylize, jobs, info])
@click.version_option(package_name="nst-serve")
def nst() -> None:
    """Paint one picture in the style of others."""


def main() -> None:
    """Run the command and exit: 0 done, 1 the job or the server failed, 2 wrong usage, 130 interrupted."""
    _end_as_by_ctrl_c()
    sys.exit(_run())


def _end_as_by_ctrl_c() -> None:
    # What cleans up after Ctrl-C cleans up after SIGTERM and the end of the terminal, which Windows does not tell.
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
            signal.signal(number, _interrupt)
    # Shells let what scripts put in the background ignore SIGINT, and with it all that becomes one here. The price is
    # that Ctrl-C for the script ends these, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run() -> int:
    try:
        code = nst.main(standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        # The reader has gone; what Python still holds for it must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (NstError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    # The same again is no second Ctrl-C: `timeout` tells the process and its group, of a hang-up shell and kernel tell.
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)
