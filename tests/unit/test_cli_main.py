"""The command line's frame: how commands are found, and what each kind of failure says and returns."""

from __future__ import annotations

import errno
import sys
import types
from pathlib import Path

import pytest

from bitwright.cli import main
from bitwright.cli.main import command_names, run
from bitwright.errors import CheckError, InputError


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Make the command ``doctor`` raise a given exception."""

    def plant(failure: BaseException) -> None:
        def command() -> None:
            raise failure

        module = types.ModuleType("bitwright.cli.commands.doctor")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bitwright.cli.commands.doctor", module)

    return plant


def test_commands_are_found_by_file_name() -> None:
    folder = Path(main.__file__).parent / "commands"
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert set(command_names()) == files
    assert "doctor" in files


def test_a_new_file_is_a_new_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "say_hello.py").write_text(
        'def command(name: str) -> None:\n    """Greet."""\n    print("hello", name)\n'
    )
    monkeypatch.setattr(main.commands, "__path__", [str(tmp_path)])
    assert command_names() == ["say-hello"]
    assert run(["say-hello", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_a_file_may_hold_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "pets_of_mine.py").write_text(
        "import typer\napp = typer.Typer(add_completion=False)\n"
        '@app.callback()\ndef root() -> None:\n    """Pets."""\n'
        '@app.command("list")\ndef list_pets() -> None:\n    print("cat")\n'
    )
    monkeypatch.setattr(main.commands, "__path__", [str(tmp_path)])
    assert run(["pets-of-mine", "list"]) == 0
    assert capsys.readouterr().out == "cat\n"


@pytest.mark.parametrize("name", command_names())
def test_every_command_takes_the_common_options(name: str, capsys) -> None:
    words = {"claims": ["claims", "show"]}.get(name, [name])
    assert run([*words, "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--json", "--seed", "--threads", "--no-verify"):
        assert option in text, option


def test_threads_hold_where_a_command_has_no_use_of_its_own(capsys) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert run(["recipes", "rtn", "--threads", "1", "--seed", "3", "--no-verify", "--json"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert run(["recipes", "rtn", "--threads", "0"]) == 2


def test_help_lists_every_command(capsys) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command_names())
    assert run([]) == 0
    assert capsys.readouterr().out == shown


def test_every_command_explains_itself(capsys) -> None:
    for name in command_names():
        assert run([name, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out


def test_unknown_command_names_the_nearest(capsys) -> None:
    assert run(["docter"]) == 2
    said = capsys.readouterr()
    assert "did you mean 'doctor'?" in said.err
    assert said.out == ""


def test_unknown_option_is_an_input_error(capsys) -> None:
    assert run(["doctor", "--jsno"]) == 2
    said = capsys.readouterr().err
    assert "--jsno" in said
    assert "bitwright doctor --help" in said


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (InputError("no shard 2 of 3; download it again"), 2, "no shard 2 of 3; download it again"),
        (CheckError("perplexity moved"), 1, "perplexity moved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a.safetensors"),
            2,
            "out/a.safetensors: the disk is full",
        ),
        (OSError(errno.EROFS, "Read-only file system", "out"), 2, "read-only"),
        (FileNotFoundError(errno.ENOENT, "No such file", "model"), 2, "model: there is no such file"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "permission denied"),
        (MemoryError(), 2, "memory"),
        (ModuleNotFoundError("No module named 'jinja2'", name="jinja2"), 2, "bitwright[report]"),
        (SystemExit(2), 2, ""),
    ],
)
def test_expected_failures(raising, capsys, failure: BaseException, code: int, words: str) -> None:
    raising(failure)
    assert run(["doctor"]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.err.count("\n") <= 1
    assert said.out == ""


FAILURES = [ZeroDivisionError("division by zero"), EOFError(), OSError(errno.EBADF, "bad", "x")]


@pytest.mark.parametrize("failure", FAILURES)
def test_internal_errors_go_to_a_log(
    raising, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(failure)
    assert run(["doctor"]) == 3
    (log,) = tmp_path.glob("bitwright-error-*.log")
    assert type(failure).__name__ in log.read_text()
    assert "Traceback" in log.read_text()
    said = capsys.readouterr().err
    assert str(log) in said
    assert type(failure).__name__ in said
    assert "\n" not in said.strip()


def test_internal_error_without_a_place_for_the_log(raising, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    raising(ZeroDivisionError("division by zero"))
    assert run(["doctor"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_version(capsys) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "bitwright 0.1.0\n"
