"""SIGTERM and SIGINT as an event of the running loop."""

import asyncio
import signal


def stop_requested() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; needs a running loop in the main thread."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
