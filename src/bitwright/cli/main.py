"""Entry point of the command line: finds commands by file name, turns every error into a sentence and an exit code."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from typer.core import TyperGroup

import bitwright
from bitwright.cli import commands
from bitwright.cli.common import with_common_options
from bitwright.cli.failures import INTERRUPTED, report_failure
from bitwright.cli.output import error_console
from bitwright.errors import InputError, nearest_key


def command_names() -> list[str]:
    """Names of all commands: the files in ``commands/``, with ``-`` for ``_``, in alphabetical order."""
    files = (found.name for found in pkgutil.iter_modules(commands.__path__))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


class CommandFiles(TyperGroup):
    """A command group whose members are the files of :mod:`bitwright.cli.commands`, each imported when asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names without importing anything."""
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the file of one command.

        Raises:
            InputError: if there is no such file; names the nearest command.
        """
        if cmd_name not in command_names():
            raise InputError(f"there is no command {cmd_name!r}; {nearest_key(cmd_name, command_names())}")
        module = importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        group = getattr(module, "app", None)
        if group is None:
            group = typer.Typer(add_completion=False)
            group.command(cmd_name)(module.command)
        for registered in group.registered_commands:
            assert registered.callback is not None
            registered.callback = with_common_options(registered.callback)
        built = typer.main.get_command(group)
        built.name = cmd_name
        return built


app = typer.Typer(
    cls=CommandFiles,
    name="bitwright",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitwright {bitwright.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step to standard error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make neural networks smaller and faster by quantization; every result is verified and every bit counted."""
    handler = RichHandler(console=error_console(), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler])


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure has been reported on standard error.

    Codes: 0 done, 1 a check failed, 2 the input or the place is wrong, 3 an internal error, 130 interrupted.
    """
    try:
        code = app(list(arguments) or ["--help"], prog_name="bitwright", standalone_mode=False)
        if code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BaseException as failure:
        return report_failure(failure)


def main() -> None:
    """Console script ``bitwright``."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
