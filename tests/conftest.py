"""Options, fixtures and settings that all tests share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# Tests are examples that must not change between runs; new ones are looked for by hand (--hypothesis-profile=search).
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--assets", type=Path, default=None, help="folder of real models and data; what it lacks is skipped"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist share the cores; more threads than cores make every test slower.
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets(request: pytest.FixtureRequest) -> Path:
    """The folder given by ``--assets``; the test is skipped where it was not given."""
    folder: Path | None = request.config.getoption("--assets")
    if folder is None:
        pytest.skip("no real models: give their folder with --assets")
    if not folder.is_dir():
        raise pytest.UsageError(f"--assets {folder} is no folder")
    return folder.resolve()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
