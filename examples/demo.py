"""Stylises a photograph on a server of its own, and leaves pictures, plots and events in demo/.

Run by `make demo`. The pictures come with scikit-image: Chelsea the cat (CC0, Stefan van der Walt)
and a cup of coffee (CC0, Rachel Michetti).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from demo_report import contact_sheet, event_line, loss_plot
from PIL import Image

from nst_client import Client, Job, PreviewEvent
from nst_client.events import AnyEvent

FOLDER = Path(__file__).parents[1] / "demo"
SAMPLES = Path(str(files("skimage"))) / "data"
CONTENT = SAMPLES / "chelsea.png"
STYLE = SAMPLES / "coffee.png"
SIZE = 256
START_SECONDS = 120
STOP_SECONDS = 90


class Stopwatch:
    """Prints how long each part took."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.say(name, time.monotonic() - start)

    def say(self, name: str, seconds: float) -> None:
        print(f"{name:<16}{seconds:7.1f} s", flush=True)


def command(name: str) -> str:
    """The path of a command that was installed beside this Python."""
    return str(Path(sys.executable).parent / name)


@contextmanager
def server(data_dir: Path, log: Path) -> Iterator[str]:
    """Runs `nst-server serve` on free loopback ports, and gives its address once it is ready."""
    anywhere = "127.0.0.1:0"
    arguments = ["serve", "--data-dir", str(data_dir), "--listen", anywhere, "--metrics-listen", anywhere]
    with log.open("wb") as output:
        process = subprocess.Popen([command("nst-server"), *arguments], stdout=output, stderr=output)
    try:
        yield wait_for_address(process, data_dir / "server.json", log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def named_or_own_server() -> Iterator[str]:
    """The address on the command line, or that of a server for the length of the call."""
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    FOLDER.mkdir(exist_ok=True)
    with (
        TemporaryDirectory(dir=FOLDER, prefix="server-") as data_dir,
        server(Path(data_dir), FOLDER / "server.log") as address,
    ):
        yield address


def wait_for_address(process: subprocess.Popen[bytes], status_file: Path, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while not status_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start; its log is in {log}:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    return str(json.loads(status_file.read_text())["address"])


def follow(job: Job, watch: Stopwatch) -> list[AnyEvent]:
    """The job's whole history, as it happens."""
    start = time.monotonic()
    events: list[AnyEvent] = []
    for event in job:
        if isinstance(event, PreviewEvent) and not any(isinstance(earlier, PreviewEvent) for earlier in events):
            watch.say("first preview", time.monotonic() - start)
        events.append(event)
    watch.say("job", time.monotonic() - start)
    return events


def write(events: Sequence[AnyEvent], result: Image.Image) -> list[Path]:
    """Leaves the results in the demo folder, and says where."""
    previews = [
        (f"iteration {event.iteration}", event.image)
        for event in events
        if isinstance(event, PreviewEvent) and event.image is not None
    ]
    pictures = [("content", Image.open(CONTENT)), ("style", Image.open(STYLE)), *previews, ("result", result)]
    paths = [FOLDER / name for name in ("result.png", "contact_sheet.png", "losses.png", "events.jsonl")]
    result.save(paths[0])
    contact_sheet(pictures).save(paths[1])
    loss_plot(events, paths[2])
    paths[3].write_text("".join(f"{event_line(event)}\n" for event in events))
    return paths


def main() -> None:
    watch = Stopwatch()
    FOLDER.mkdir(exist_ok=True)
    with watch.part("weights"):
        subprocess.run([command("nst"), "weights", "pull"], check=True)
    with TemporaryDirectory(dir=FOLDER, prefix="server-") as data_dir:
        start = time.monotonic()
        with server(Path(data_dir), FOLDER / "server.log") as address:
            watch.say("server start", time.monotonic() - start)
            with Client(address) as client:
                with watch.part("upload"):
                    content, style = client.upload(CONTENT), client.upload(STYLE)
                job = client.stylize(content, style, size=SIZE)
                events = follow(job, watch)
                result = job.result()
            start = time.monotonic()
        watch.say("server stop", time.monotonic() - start)
    with watch.part("pictures"):
        paths = write(events, result)
    for path in paths:
        print(os.path.relpath(path))


if __name__ == "__main__":
    main()
