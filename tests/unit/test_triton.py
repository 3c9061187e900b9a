"""Triton's kernels: run by its interpreter, compiled for processors that are not here, and on a GPU where there is one.

Triton decides at its import whether it interprets, so every area runs in a process of its own, with the tests of
``triton_cases/`` (``TRITON_INTERPRET=1 pytest tests/unit/triton_cases/linear.py`` runs one by hand).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.runtime.dispatch import Request
from bitwright.runtime.kernels.table import TABLE
from bitwright.runtime.kernels.triton import available

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("triton_cases")
AREAS = ("linear", "scaled", "hadamard", "attention", "direct", "library")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_cases(area: str, *options: str, interpret: bool) -> None:
    """Run the tests of one area in a fresh process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "TRITON_INTERPRET"}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        str(CASES / f"{area}.py"),
        *options,
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1700)
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
def test_kernels_compile_for_a_processor_that_is_not_here() -> None:
    run_cases("compiled", "-k", "90 and (g128 or mxfp4 or butterflies or (attention and int4))", interpret=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_triton
def test_every_kernel_compiles_for_every_processor() -> None:
    run_cases("compiled", interpret=False)


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "op": "linear",
        "form": "affine",
        "device": "cuda",
        "dtype": torch.float16,
        "shape": (64, 256),
    }
    return Request(**{**given, "format": "int4 g64", "rows": 1, **changes})


def test_the_table_prefers_them_on_a_graphics_processor() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    for changes in ({}, {"rows": 4096}, {"form": "table", "format": "nf4 b64"}, {"format": "int3"}):
        assert TABLE.choose(request(**changes)).kernel.name == "linear/triton"
    assert TABLE.choose(request(op="hadamard", form="", format="", shape=(64,))).kernel.name == "hadamard/triton"
    assert TABLE.choose(request(op="attention", form="", format="", shape=())).kernel.name == "attention/triton"
    assert TABLE.choose(request(device="cpu")).kernel.name != "linear/triton"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "int4 g20"}, "multiples of 8"),
        ({"format": "int4 g32 axis=0"}, "multiples of 8"),
        ({"dtype": torch.float64}, "not float64"),
        ({"form": "affine+sparse"}, r"not affine\+sparse"),
    ],
)
def test_what_they_do_not_serve_goes_to_the_reference_and_says_why(changes: dict[str, Any], words: str) -> None:
    choice = TABLE.choose(request(**changes))
    assert choice.kernel.name == "linear/reference"
    assert re.search(words, dict(choice.passed_over)["linear/triton"])


def test_without_triton_every_operation_is_served_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda name: None)
    for op, form, text in (("linear", "affine", "int4 g64"), ("hadamard", "", ""), ("attention", "", "")):
        choice = TABLE.choose(request(op=op, form=form, format=text))
        assert choice.kernel.name == f"{op}/reference"
        assert "pip install triton" in dict(choice.passed_over)[f"{op}/triton"]


def test_neither_the_package_nor_the_table_imports_triton() -> None:
    ask = "import sys\nimport bitwright.runtime.kernels.table\nassert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", ask], check=True)
