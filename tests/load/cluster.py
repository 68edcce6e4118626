"""The system as a cluster runs it: nats-server, gateways and model servers, each a process of its own."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client as NatsClient
from nats.js.api import StreamInfo

from nst_server.supervisor import find_nats_server, write_nats_config

LAUNCH = Path(__file__).with_name("launch.py")
RESTART_SECONDS = 1.0
READY_SECONDS = 120.0
NATS, GATEWAY, MODEL_SERVER = "nats-server", "gateway", "model-server"
GRACE_SECONDS = {NATS: 30.0, GATEWAY: 30.0, MODEL_SERVER: 60.0}
PRIVATE_PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Member:
    """One process of the cluster, started again whenever it dies, as Kubernetes would."""

    def __init__(self, kind: str, name: str, command: Sequence[str], ready_port: int | None, folder: Path) -> None:
        self.kind = kind
        self.name = name
        self.ready_port = ready_port
        self.deaths: list[int] = []
        self._command = command
        self._log = folder / f"{name}.log"
        self._environment = dict(os.environ)
        self._cores = os.sched_getaffinity(0)
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._expected: set[int] = set()
        self._frozen = False

    def configure(self, environment: Mapping[str, str]) -> None:
        """Sets variables of the processes to come."""
        self._environment |= environment

    def pin(self, core: int) -> None:
        """Keeps the processes to come on one core."""
        self._cores = {core}

    @property
    def pid(self) -> int | None:
        """The running process, frozen or not."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and alive else None

    @property
    def healthy(self) -> bool:
        """Whether there is something to harm."""
        return self.pid is not None and not self._frozen

    def start(self) -> None:
        """Starts the process and keeps it running until `stop`."""
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, str(LAUNCH), ",".join(map(str, self._cores)), *self._command),
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            code = await self._process.wait()
            if self._process.pid not in self._expected:
                self.deaths.append(code)
            await asyncio.sleep(RESTART_SECONDS)

    def kill(self) -> None:
        """SIGKILL, as a crash would be."""
        self._signal(signal.SIGKILL)

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while: what others take for dead comes back."""
        self._frozen = True
        pid = self._signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._frozen = False
            if self.pid == pid:
                os.kill(pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        pid = self.pid
        if pid is None:
            raise ProcessLookupError(self.name)
        if number is signal.SIGKILL:
            self._expected.add(pid)
        os.kill(pid, number)
        return pid

    async def stop(self) -> int:
        """SIGTERM, without a restart; the exit code. A process that outstays its grace is killed."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), GRACE_SECONDS[self.kind])
            except TimeoutError:
                process.kill()
        return await process.wait()

    async def ready(self) -> None:
        """Waits until the process takes work.

        Raises:
            TimeoutError: it does not, in `READY_SECONDS`.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._answering()
        except TimeoutError as error:
            raise TimeoutError(f"{self.name} is not ready; the end of its log:\n{self.log_end()}") from error

    async def _answering(self) -> None:
        while True:
            if self.ready_port is None or await asyncio.to_thread(_answers, self.ready_port):
                return
            await asyncio.sleep(0.1)

    def log_end(self) -> str:
        """The last lines of the process's log."""
        return "\n".join(self._log.read_text().splitlines()[-20:])


@dataclass(frozen=True)
class Stream:
    """What one stream of the job store holds."""

    messages: int
    bytes: int
    subjects: Mapping[str, int]


class Cluster:
    """The processes, and a look into the job store."""

    def __init__(
        self, folder: Path, *, nats: int, gateways: int, model_servers: int, environment: Mapping[str, str]
    ) -> None:
        """`nats` is how many nats-servers keep everything; `environment` is settings of the server, NST_* variables."""
        folder.mkdir(parents=True, exist_ok=True)
        ports = iter(_free_ports(3 * nats + 2 * gateways + model_servers))
        configs = write_nats_configs(folder, [next(ports) for _ in range(nats)], [next(ports) for _ in range(nats)])
        self._profile_ports = [_profiled(config, next(ports)) for config in configs.values()]
        self.nats_port = next(iter(configs))
        self.nats = [
            Member(NATS, f"{NATS}-{number}", [find_nats_server(), "-c", str(config)], None, folder)
            for number, config in enumerate(configs.values(), 1)
        ]
        self.gateway_ports = [next(ports) for _ in range(gateways)]
        self.gateways = [
            self._member(GATEWAY, number, folder, next(ports), "--listen", f"127.0.0.1:{port}")
            for number, port in enumerate(self.gateway_ports, 1)
        ]
        self.model_servers = [
            self._member(MODEL_SERVER, number, folder, next(ports)) for number in range(1, model_servers + 1)
        ]
        for member in self.members:
            one_thread = {"NST_THREADS": "1", "OMP_NUM_THREADS": "1"}
            member.configure({**one_thread, "NST_REPLICAS": str(nats), **environment})

    def _member(self, kind: str, number: int, folder: Path, status_port: int, *arguments: str) -> Member:
        command = [sys.executable, "-m", "nst_server", kind, "--nats", f"nats://127.0.0.1:{self.nats_port}"]
        command += ["--metrics-listen", f"127.0.0.1:{status_port}", *arguments]
        return Member(kind, f"{kind}-{number}", command, status_port, folder)

    @property
    def members(self) -> list[Member]:
        """Every process, in the order in which they are needed."""
        return [*self.nats, *self.gateways, *self.model_servers]

    async def start(self, without: str = "") -> None:
        """Starts every process, but for those of the kind `without`, and waits until all take work."""
        members = [member for member in self.members if member.kind != without]
        for member in members:
            member.start()
        await asyncio.gather(*(member.ready() for member in members))

    async def stop(self) -> None:
        """Stops every process, NATS last."""
        await asyncio.gather(*(member.stop() for member in [*self.gateways, *self.model_servers]))
        await asyncio.gather(*(member.stop() for member in self.nats))

    async def live_bytes(self) -> dict[str, int]:
        """What each nats-server has in use, once its collector has run."""
        found = await asyncio.gather(*(asyncio.to_thread(_live_bytes, port) for port in self._profile_ports))
        return {member.name: live for member, live in zip(self.nats, found, strict=True)}

    async def store(self) -> dict[str, Stream]:
        """Every stream of the job store by name, with its messages by subject."""
        client = await nats.connect(f"nats://127.0.0.1:{self.nats_port}", max_reconnect_attempts=1)
        try:
            return await _streams(client)
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path,
    *,
    nats: int = 1,
    gateways: int = 2,
    model_servers: int = 2,
    environment: Mapping[str, str] | None = None,
    without: str = "",
) -> AsyncIterator[Cluster]:
    """A cluster with its files in `folder`, for as long as the block runs; who needs some `without` starts them."""
    cluster = Cluster(folder, nats=nats, gateways=gateways, model_servers=model_servers, environment=environment or {})
    try:
        await cluster.start(without)
        yield cluster
    finally:
        await cluster.stop()


def write_nats_configs(folder: Path, ports: Sequence[int], routes: Sequence[int]) -> dict[int, Path]:
    """Configurations, by port, of nats-servers that keep everything together, or of one by itself."""
    configs = {}
    for number, (port, route) in enumerate(zip(ports, routes, strict=True), 1):
        own = folder / f"nats-{number}"
        own.mkdir()
        configs[port] = write_nats_config(own, f"127.0.0.1:{port}")
        if len(ports) > 1:
            settings = json.loads(configs[port].read_text())
            peers = [f"nats://127.0.0.1:{other}" for other in routes]
            settings["cluster"] = {"name": "nst", "listen": f"127.0.0.1:{route}", "routes": peers}
            configs[port].write_text(json.dumps(settings | {"server_name": own.name}))
    return configs


def _profiled(config: Path, port: int) -> int:
    """Has a nats-server tell at this port what its memory is taken for."""
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prof_port": port}))
    return port


def _live_bytes(port: int) -> int:
    with NO_PROXY.open(f"http://127.0.0.1:{port}/debug/pprof/heap?gc=1&debug=1") as response:
        (live,) = re.findall(r"# HeapAlloc = (\d+)", response.read().decode())
    return int(live)


async def _streams(client: NatsClient) -> dict[str, Stream]:
    jetstream = client.jetstream()
    streams = {}
    for info in await jetstream.streams_info():
        name = str(info.config.name)
        detail: StreamInfo = await jetstream.stream_info(name, subjects_filter=">")
        streams[name] = Stream(detail.state.messages, detail.state.bytes, detail.state.subjects or {})
    return streams


def _answers(port: int) -> bool:
    try:
        with NO_PROXY.open(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, and that no outgoing connection will take."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.choice(PRIVATE_PORTS)))
                found.append(int(probe.getsockname()[1]))
    return found
