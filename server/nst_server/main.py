"""The `nst-server` command: `serve` runs everything, `gateway` and `model-server` run the halves."""

import asyncio
import dataclasses
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nst_server import garbage, logs, tracing
from nst_server.config import GatewaySettings, ModelServerSettings, StoreSettings

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings")
ENV_PREFIX = "NST_"


class Emptiable(click.Option):
    """An option whose environment variable may be empty; click takes that for one that is not set."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """What is in the environment, if anything is."""
        return os.environ.get(str(self.envvar))


class Address(click.ParamType[tuple[str, int], Any]):
    """HOST:PORT."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        return host, int(port)


def settings_options(*kinds: type[Any]) -> Callable[[Command], Command]:
    """A command line option for every setting, with its default, its help and its NST_* variable."""

    def add(command: Command) -> Command:
        for kind in reversed(kinds):
            for entry in reversed(dataclasses.fields(kind)):
                command = _option(
                    f"--{entry.name.replace('_', '-')}",
                    entry.name.upper(),
                    cls=Emptiable if entry.metadata["zero"] and isinstance(entry.default, str) else click.Option,
                    type=type(entry.default),
                    default=entry.default,
                    show_default=True,
                    help=entry.metadata["help"],
                )(command)
        return command

    return add


def _option(flag: str, variable: str, **attributes: Any) -> Callable[[Command], Command]:
    return click.option(flag, envvar=ENV_PREFIX + variable, show_envvar=True, **attributes)


def take(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """Takes a settings object's fields out of the command's arguments."""
    fields = {entry.name: values.pop(entry.name) for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**fields)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


_nats = _option("--nats", "NATS", required=True, help="Where NATS is: nats://HOST:PORT.")
_listen = _option(
    "--listen", "LISTEN", type=Address(), default="127.0.0.1:50051", show_default=True, help="Where to answer gRPC."
)
_metrics = _option(
    "--metrics-listen",
    "METRICS_LISTEN",
    type=Address(),
    default="127.0.0.1:9090",
    show_default=True,
    help="Where to answer /metrics, /healthz and /readyz.",
)
_certificate = _option(
    "--tls-certificate", "TLS_CERTIFICATE", type=click.Path(exists=True, path_type=Path), help="PEM."
)
_key = _option("--tls-key", "TLS_KEY", type=click.Path(exists=True, path_type=Path), help="PEM.")


@click.group()
@click.version_option(package_name="nst-serve")
@_option(
    "--log-level",
    "LOG_LEVEL",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    help="What is told at all.",
)
def main(log_level: str) -> None:
    """Neural style transfer as a service."""
    logs.configure(log_level)


@main.command()
@_nats
@_listen
@_metrics
@_certificate
@_key
@settings_options(GatewaySettings, StoreSettings)
def gateway(
    nats: str,
    listen: tuple[str, int],
    metrics_listen: tuple[str, int],
    tls_certificate: Path | None,
    tls_key: Path | None,
    **values: Any,
) -> None:
    """Answers clients; needs NATS, and no torch."""
    from nst_server.gateway import app

    tracing.configure("nst-gateway")
    settings, store = take(GatewaySettings, values), take(StoreSettings, values)
    tls = tls_pair(tls_certificate, tls_key)
    asyncio.run(app.serve(nats, "{}:{}".format(*listen), tls, *metrics_listen, settings, store))


@main.command("model-server")
@_nats
@_metrics
@settings_options(ModelServerSettings)
def model_server(nats: str, metrics_listen: tuple[str, int], **values: Any) -> None:
    """Runs jobs on one device; needs NATS and torch."""
    with garbage.spared():
        from nst_server.model_server import app

    settings = take(ModelServerSettings, values)
    try:
        app.check_device(settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tracing.configure("nst-model-server")
    asyncio.run(app.serve(nats, *metrics_listen, settings))


@main.command()
@click.pass_context
@_option(
    "--data-dir",
    "DATA_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default="nst-data",
    show_default=True,
    help="Where jobs and pictures are kept; a server started here again goes on with them.",
)
@_listen
@_metrics
@_option(
    "--model-metrics-listen",
    "MODEL_METRICS_LISTEN",
    type=Address(),
    default="127.0.0.1:0",
    show_default=True,
    help="Like --metrics-listen, of the model server.",
)
@_certificate
@_key
@settings_options(GatewaySettings, ModelServerSettings, StoreSettings)
def serve(
    context: click.Context,
    /,
    data_dir: Path,
    listen: tuple[str, int],
    metrics_listen: tuple[str, int],
    model_metrics_listen: tuple[str, int],
    tls_certificate: Path | None,
    tls_key: Path | None,
    **values: Any,
) -> None:
    """Runs NATS, a model server and a gateway on this machine, and watches over them."""
    from nst_server.supervisor import Plan, StartError, supervise

    for kind in (GatewaySettings, ModelServerSettings, StoreSettings):
        take(kind, {**values})  # a child would refuse it, again and again
    if values["replicas"] > 1:
        raise click.UsageError("replicas: there is one NATS here, which keeps one copy; more need a cluster of it")
    tls = tls_pair(tls_certificate, tls_key)
    if tls is not None:
        values |= {"tls_certificate": tls.certificate.resolve(), "tls_key": tls.key.resolve()}
    plan = Plan(
        data_dir=data_dir.resolve(),
        listen=listen,
        metrics_listen=metrics_listen,
        model_metrics_listen=model_metrics_listen,
        # The children read their settings from the environment, as they do in a container.
        environment={ENV_PREFIX + name.upper(): str(value) for name, value in values.items()},
        log_level=context.find_root().params["log_level"],
    )
    try:
        asyncio.run(supervise(plan))
    except (StartError, OSError) as error:  # an OSError names what in the data folder cannot be written
        raise click.ClickException(str(error)) from error


def tls_pair(certificate: Path | None, key: Path | None) -> Any:
    """The gateway's certificate and key, or None for plain text."""
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together")
    if certificate is None or key is None:
        return None
    _check_pair(certificate, key)
    from nst_server.gateway.app import Tls

    return Tls(certificate, key)


def _check_pair(certificate: Path, key: Path) -> None:
    """Raises UsageError where gRPC would say only that it cannot listen."""
    try:
        # Without the password it would be asked for, and gRPC takes none.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise click.UsageError(f"--tls-certificate and --tls-key are no certificate and its key: {error}") from error
