"""The compiled code without Python, under AddressSanitizer, UBSan and ThreadSanitizer.

A sanitized build takes minutes, so it is made by `make native-sanitize` and `make native-thread`; where it is there,
this compiles what changed since and runs other random cases than make does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("folder", "parts"), [("native-sanitize", ()), ("native-thread", ("pool", "decode"))])
def test_the_driver_finds_nothing(folder: str, parts: tuple[str, ...]) -> None:
    build = BUILD / folder
    if not (build / "CMakeCache.txt").is_file() or shutil.which("cmake") is None:
        pytest.skip(f"there is no sanitized build here; `make {folder}` makes one")
    subprocess.run(["cmake", "--build", str(build)], check=True, capture_output=True)
    done = subprocess.run([str(build / "driver"), "40", "2", *parts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
