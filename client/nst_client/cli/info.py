"""`nst info`: what a server is, allows and assumes."""

from collections.abc import Iterable, Iterator

import click
from rich.table import Column, Table

from nst_client.cli.output import option_text, print_json, print_table
from nst_client.cli.server import Server, server_options
from nst_client.info import ServerInfo
from nst_client.options import OPTION_NAMES, option_choices


@click.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(server: Server, as_json: bool) -> None:
    """Show what the server is: models, limits, defaults and ranges of the options.

    Without a server this asks one that it starts for the purpose, if it is installed here.
    """
    with server.or_private() as chosen:
        answer = chosen.ask(lambda client: client.server_info())
    if as_json:
        print_json(answer)
        return
    click.echo(f"server version {answer.version}")
    for table in _tables(answer):
        click.echo()
        print_table(table, fold=True)


def _tables(info: ServerInfo) -> Iterator[Table]:
    models = (
        (model.name, "yes" if model.available else "no", model.description, model.credit) for model in info.models
    )
    yield _table(("model", "available", "what it is", "credit"), models)
    servers = ((server.name, server.device, str(server.running_jobs)) for server in info.model_servers)
    yield _table(("model server", "device", "running jobs"), servers)
    yield _table(("option", "default", "allowed"), _options(info))
    yield _table(("limit", "value"), ((name, str(limit)) for name, limit in sorted(info.limits.items())))


def _options(info: ServerInfo) -> Iterator[tuple[str, str, str]]:
    for name in OPTION_NAMES:
        low_high = info.ranges.get(name)
        allowed = f"{low_high[0]:.10g} to {low_high[1]:.10g}" if low_high else ", ".join(option_choices(name))
        yield name, option_text(info.defaults.get(name)), allowed
    if info.preview_interval is not None:
        yield "--preview-interval", str(info.preview_interval), ""


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    name, *others = header
    # A name is there to be copied; the rest can be folded.
    table = Table(Column(name, no_wrap=True), *(Column(other, overflow="fold") for other in others), box=None)
    for row in rows:
        table.add_row(*row)
    return table
