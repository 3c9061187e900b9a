"""The examples in the pages run as they stand: Python blocks, and ``$ bitwright ...`` lines of console blocks.

One page is one test, because its examples build on each other. A page may say that an example needs a command:
``<!--- skip: next if("fit" not in commands, reason="no such command yet") -->``.
"""

from __future__ import annotations

import doctest
import shlex
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from bitwright.cli.main import command_names, run

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def run_commands(example: Example) -> None:
    """Run every ``$ bitwright ...`` line of a console block in this process; other lines are for people."""
    for line in example.parsed.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if line.startswith("$ ") and words[:1] == ["bitwright"]:
            code = run(words[1:])
            assert code == 0, f"{line!r} in {example.path}:{example.line} ended with exit code {code}"


def open_page(page: Path) -> Document:
    """Parse one page; its namespace knows the names of all commands."""
    python = PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    console = CodeBlockParser(language="console", evaluator=run_commands)
    document = Sybil(parsers=[python, console, SkipParser()]).parse(page)
    document.namespace["commands"] = command_names()
    return document


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in open_page(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue


def test_a_wrong_example_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ bitwright nothing\n```\n\n```python\n>>> 1 + 1\n3\n\n```\n")
    for example in open_page(page).examples():
        with pytest.raises(AssertionError):
            example.evaluate()


def test_a_skipped_example_does_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('<!--- skip: next if("fly" not in commands, reason="not yet") -->\n```python\n1 / 0\n```\n')
    skip, example = open_page(page).examples()
    skip.evaluate()
    with pytest.raises(SkipTest):
        example.evaluate()
