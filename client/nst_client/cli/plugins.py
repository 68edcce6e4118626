"""Commands that other parts of the distribution add, through the entry points of `nst.commands`."""

from importlib.metadata import EntryPoint, entry_points

import click

GROUP = "nst.commands"


class PluginCommand(click.Command):
    """Stands for a command in the list of commands, so that showing the list imports nothing."""

    def __init__(self, entry_point: EntryPoint) -> None:
        super().__init__(entry_point.name, short_help=f"(from {entry_point.module})", add_help_option=False)
        self._entry_point = entry_point

    def load(self) -> click.Command:
        """The command itself. Raises ClickException when it cannot be imported."""
        try:
            command = self._entry_point.load()
        except Exception as error:
            raise click.ClickException(
                f"the command {self.name} cannot be loaded: {error}. It may need the server's packages: "
                "pip install '.[server]' in the source folder"
            ) from error
        if not isinstance(command, click.Command):
            raise click.ClickException(f"the command {self.name} is broken: {self._entry_point.value} is no command")
        return command


class PluginGroup(click.Group):
    """A group with the commands of the entry points beside its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*super().list_commands(ctx), *entry_points(group=GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or what stands for it."""
        own = super().get_command(ctx, cmd_name)
        if own is None and cmd_name in (found := entry_points(group=GROUP)).names:
            return PluginCommand(found[cmd_name])
        return own

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called; only now is one from an entry point imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, PluginCommand) else command, rest
