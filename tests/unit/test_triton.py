"""Triton's kernels: run by its interpreter, compiled for processors that are not here, and on a GPU where there is one.

Triton decides at its import whether it interprets, so every area runs in a process of its own, with the tests of
``triton_cases/`` (``TRITON_INTERPRET=1 pytest tests/unit/triton_cases/linear.py`` runs one by hand).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitwright.runtime import Request
from bitwright.runtime.kernels.triton import available

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("triton_cases")
AREAS = ("linear",)

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_cases(area: str, *, interpret: bool) -> None:
    """Run the tests of one area in a fresh process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "TRITON_INTERPRET"}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES / f"{area}.py")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("area", AREAS)
def test_the_interpreter_agrees_with_the_reference(area: str) -> None:
    run_cases(area, interpret=True)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("area", AREAS)
def test_the_device_agrees_with_the_reference(area: str) -> None:
    run_cases(area, interpret=False)


@needs_triton
def test_every_kernel_compiles_for_processors_that_are_not_here() -> None:
    run_cases("compiled", interpret=False)


def request(**changes: object) -> Request:
    given = {"op": "linear", "form": "affine", "device": "cuda", "dtype": torch.float16, "shape": (64, 256)}
    return Request(**{**given, "format": "int4 g64", "rows": 1, **changes})  # type: ignore[arg-type]


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda name: None)
