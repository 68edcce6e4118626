"""`nst weights`: what weights there are, and getting them."""

from importlib.util import find_spec
from pathlib import Path

import click

from nst_engine.networks import NETWORKS

NEEDED = ("torch", "safetensors", "onnx")


@click.group()
def weights() -> None:
    """Lists and fetches the weights of the feature networks."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"weights need {', '.join(missing)}, which come with the server: "
            "pip install '.[server]' in the source folder"
        )


@weights.command("list")
def list_weights() -> None:
    """Shows every network: whether its weights are here, where they come from, and on what terms."""
    from nst_engine.weight_sources import SOURCES
    from nst_engine.weights import cache_directory, is_cached

    for network in NETWORKS.values():
        click.echo(f"{network.name}  [{'here' if is_cached(network.name) else 'not fetched'}]")
        click.echo(f"    {network.description}")
        click.echo(f"    from     {SOURCES[network.name].description}")
        click.echo(f"    sha256   {SOURCES[network.name].sha256}")
        click.echo(f"    licence  {network.credit}")
    click.echo(f"\nKept in {cache_directory()} (set NST_CACHE to move it).")


@weights.command("pull")
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(NETWORKS)))
@click.option(
    "--from",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the weights of the one NAME from this .safetensors or .pth file.",
)
def pull(names: tuple[str, ...], file: Path | None) -> None:
    """Fetches weights into the cache; without NAME, those of the default network."""
    from nst_engine.options import StylizeOptions
    from nst_engine.weights import WeightsError, import_file, load, locate

    if file is not None and len(names) != 1:
        raise click.UsageError("--from needs exactly one NAME: which network the file belongs to")
    for name in names or (StylizeOptions().model,):
        try:
            if file is not None:
                import_file(name, file)
            else:
                load(name)
        except WeightsError as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{name}: {locate(name)}")
        click.echo(f"    {NETWORKS[name].credit}")
