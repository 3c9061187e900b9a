"""``bitwright doctor`` and the facts about the machine that it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitwright import machine, native
from bitwright.cli.commands import doctor
from bitwright.cli.main import run
from bitwright.cli.requirements import Requirement, extra_for, requirements


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_bandwidth", lambda: 1.5e10)


@pytest.mark.usefixtures("quick")
def test_json_has_every_key(capsys) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"format_version", *doctor.Diagnosis.__dataclass_fields__}
    assert found["packages"]["torch"].startswith("2.")
    assert found["cpu"]["cores"] >= 1
    assert "linear/reference" in found["kernels"]
    assert found["read_bandwidth_bytes_per_second"] == 1.5e10


@pytest.mark.usefixtures("quick")
def test_people_see_the_machine(capsys) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("read bandwidth", "15.0 GB/s", "safetensors", "kernels"))


@pytest.mark.usefixtures("quick")
def test_a_missing_base_package_is_an_error(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: (Requirement("torch", None, None),))
    assert run(["doctor"]) == 2
    assert "torch not installed" in capsys.readouterr().err


def test_compiled_kernels_or_the_reason_are_shown(capsys, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["compiled_kernels"]
    assert found["installed"] == (native.unavailable() is None)
    assert found["chosen"] == next(iter(found["instruction_sets"]), None)
    monkeypatch.setattr(native, "unavailable", lambda: "no compiler was there")
    monkeypatch.setattr(native, "instruction_sets", tuple)
    assert doctor.compiled_kernels() == doctor.CompiledKernels(False, "no compiler was there", (), None)
    assert run(["doctor"]) == 0
    assert "products run on torch" in " ".join(capsys.readouterr().out.split())


def test_extras_name_what_is_missing() -> None:
    wanted = (Requirement("torch", None, "2.13"), Requirement("a", "x", "1"), Requirement("b", "x", None))
    assert doctor.extras(wanted) == {"x": doctor.Extra(False, ("b",))}


def test_requirements_come_from_our_metadata() -> None:
    base = {need.name for need in requirements() if need.extra is None}
    assert {"torch", "numpy", "safetensors", "pydantic", "typer", "rich", "filelock"} == base
    assert extra_for("sklearn") == "vision"
    assert extra_for("no_such_module") is None


def test_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.25, 1.0])  # end = 0 + 0.5; one pass from 0.0 to 0.25; then the time is over
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert machine.read_bandwidth(0.5, 1 << 12) == pytest.approx((1 << 12) / 0.25)


def test_memory_respects_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:  900 kB\n",
        "/sys/fs/cgroup/memory.max": "512000\n",
        "/sys/fs/cgroup/memory.current": "500000\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.memory() == machine.Memory(512000, 12000)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.memory() == machine.Memory(1024000, 921600)


def test_processor_reads_both_styles_of_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    x86 = "processor\t: 0\nmodel name\t: A: fast one\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t: sse\n"
    monkeypatch.setattr(machine, "_read", lambda path: x86)
    assert machine.processor().name == "A: fast one"
    assert machine.processor().instruction_sets == ("avx2", "avx512_vnni")
    monkeypatch.setattr(machine, "_read", lambda path: "processor : 0\nFeatures : fp asimd i8mm\n")
    assert machine.processor().instruction_sets == ("asimd", "i8mm")


def test_disk_free_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert machine.disk_free(tmp_path / "a" / "b") > 0
