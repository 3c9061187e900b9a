"""Options of the tests. They are defined here, not in tests/, so that they are known before any folder is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--assets", type=Path, default=None, help="folder of real models and data; what it lacks is skipped"
    )
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")
