"""Options of the tests; runs the examples in the pages: Python prompts, Python blocks, and `$ bitwright ...` lines of console blocks."""

from __future__ import annotations

import doctest
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in tests/, so that they are known before any folder is looked at.
    parser.addoption(
        "--assets", type=Path, default=None, help="folder of real models and data; what it lacks is skipped"
    )
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def run_commands(example: Example) -> None:
    """Run every ``$ bitwright ...`` line of a console block in this process; other lines are for people."""
    from bitwright.cli.main import run

    for line in example.parsed.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if line.startswith("$ ") and words[:1] == ["bitwright"]:
            code = run(words[1:])
            if code != 0:
                raise AssertionError(f"{line!r} in {example.path} ended with exit code {code}")


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working folder for the examples of one page; they may use each other's files."""
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("page")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def know_commands(namespace: dict[str, object]) -> None:
    """Let the pages say ``skip: next if("name" not in commands)``."""
    from bitwright.cli.main import command_names

    namespace["commands"] = command_names()


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL),
        CodeBlockParser(language="console", evaluator=run_commands),
        SkipParser(),
    ],
    patterns=["docs/*.md", "CONTRIBUTING.md", "README.md"],
    setup=know_commands,
    fixtures=["page_folder"],
).pytest()
