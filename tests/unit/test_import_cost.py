"""Importing Bitwright, and asking its command line for help, must stay cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bitwright

_HEAVY = ("torch", "transformers", "numpy", "scipy", "pydantic")


def _heavy_modules_after(statement: str) -> list[str]:
    """Names of heavy packages that a fresh interpreter holds after running ``statement``."""
    ask = f"{statement}\nimport sys\nprint(*[name for name in {_HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_import_loads_nothing_heavy() -> None:
    assert _heavy_modules_after("import bitwright") == []


def test_help_does_not_load_torch() -> None:
    heavy = _heavy_modules_after("from bitwright.cli.main import run\nassert run(['--help']) == 0")
    assert not {"torch", "transformers", "numpy", "scipy"} & set(heavy)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = bitwright.quantise


def test_public_names_are_listed() -> None:
    assert {"parse", "plan", "load", "InputError"} <= set(dir(bitwright))


def test_every_public_name_exists() -> None:
    for name in bitwright.__all__:
        assert getattr(bitwright, name) is not None


def test_type_checkers_and_users_see_the_same_names() -> None:
    assert set(bitwright._HOMES) | {"BitwrightError", "CheckError", "InputError", "__version__"} == set(
        bitwright.__all__
    )
