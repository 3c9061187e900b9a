"""Kills and full disks at every stage of a job: the last units, verification, the report, the final rename."""

from __future__ import annotations

import resource
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import jinja2  # noqa: F401  (imported before the forks, so that no child pays for it)
import pytest

from bitwright.cli.main import run as run_command
from bitwright.errors import InputError
from bitwright.jobs import Job, run
from bitwright.jobs.request import build_recipe
from tests.fault.killing import killed_at, steps_of
from tests.unit.jobs_toys import digests, in_child, save_model, tiny_llama, token_ids

pytestmark = pytest.mark.usefixtures("single_thread_without_pictures")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "toy", tiny_llama(layers=1))


def _job(model: Path, out: Path, verify: bool = True, weights: str = "int4 g16 asym") -> Job:
    return Job(model, build_recipe("rtn", (), weights), [{"input_ids": token_ids()}], out=out, verify=verify)


def test_killed_after_the_last_unit(checkpoint: Path, tmp_path: Path) -> None:
    """The finished units are kept until the last step; a job that has its final name is whole."""
    names = steps_of(_job(checkpoint, tmp_path / "whole"), tmp_path / "steps")
    expected = digests(tmp_path / "whole")
    last = max(i for i, name in enumerate(names) if name == "journal") + 1
    final = max(i for i, name in enumerate(names) if name == "rename")
    assert final - last >= 10  # index, config, report, page
    for count in (last, final - 1, final, final + 1):
        out = tmp_path / f"killed-{count}"
        assert killed_at(_job(checkpoint, out), count) == -signal.SIGKILL
        if count <= final:
            assert not out.exists()
            kept = tmp_path / f"kept-{count}"

            def finish(out: Path = out, kept: Path = kept) -> None:
                kept.write_text(str(run(_job(checkpoint, out)).resumed), encoding="utf-8")

            assert in_child(finish) == 0
            assert count == final or kept.read_text(encoding="utf-8") == "3"
        assert digests(out) == expected, f"killed at step {count} of {len(names)}"
        assert not out.with_name(out.name + ".partial").exists()


def test_torn_in_the_middle_of_a_line(checkpoint: Path, tmp_path: Path) -> None:
    """Twice in a row, then what a power loss leaves: a block of zeros, or of anything."""
    names = steps_of(_job(checkpoint, tmp_path / "whole", verify=False), tmp_path / "steps")
    job = _job(checkpoint, tmp_path / "out", verify=False)
    assert killed_at(job, names.index("journal"), torn=True) == -signal.SIGKILL
    assert killed_at(job, names.index("journal"), torn=True) == -signal.SIGKILL
    assert in_child(lambda: run(job)) == 0
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    for number, tail in enumerate((bytes(4096), b"\xff" * 100 + b"\n[]\n", b'{"unit": 5}\n')):
        job = _job(checkpoint, tmp_path / f"tail-{number}", verify=False)
        assert killed_at(job, names.index("journal", names.index("journal") + 1) + 1) == -signal.SIGKILL
        journal = tmp_path / f"tail-{number}.partial" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes() + tail)
        assert run(job).resumed >= 1
        assert digests(tmp_path / f"tail-{number}") == digests(tmp_path / "whole")


def test_a_file_that_may_not_grow(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The limit of the shell (ulimit -f) acts as a full disk does."""
    out = tmp_path / "out"
    command = ["quantize", str(checkpoint), "--recipe", "rtn", "--weights", "int4 g16", "--no-verify"]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
        if run_command([*command, "--out", str(out)]) != 2:
            raise AssertionError("not refused")

    assert in_child(limited) == 0
    assert "error: " in capfd.readouterr().err
    assert not out.exists()
    assert not list(tmp_path.glob("out.partial/*.safetensors.partial"))
    assert in_child(lambda: run_command([*command, "--out", str(out)])) == 0
    assert in_child(lambda: run_command([*command, "--out", str(tmp_path / "whole")])) == 0
    assert digests(out) == digests(tmp_path / "whole")


def test_a_disk_that_fills_up(checkpoint: Path, tmp_path: Path) -> None:
    """Somebody else fills the disk after the first unit; what was finished stays, and the same job goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "bitwright-test", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small file system")

    def fill(unit: str, done: int, total: int, share: float) -> None:
        if done == 1 and not (disk / "other").exists():
            with suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    job = _job(checkpoint, disk / "out", verify=False)
    try:
        with pytest.raises((InputError, OSError), match=r"the disk is full|No space left"):
            run(job, fill)
        assert not (disk / "out").exists()
        assert not list(disk.glob("out.partial/*.partial"))
        (disk / "other").unlink()
        assert run(job).resumed == 1
        run(_job(checkpoint, tmp_path / "whole", verify=False))
        assert digests(disk / "out") == digests(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_difference_is_named(checkpoint: Path, tmp_path: Path) -> None:
    job = _job(checkpoint, tmp_path / "out", verify=False)
    assert killed_at(job, 30) == -signal.SIGKILL
    with pytest.raises(InputError, match=r"another recipe \(\.\.\..*bits=4.* there, \.\.\..*bits=3.* now\)"):
        run(_job(checkpoint, tmp_path / "out", verify=False, weights="int3 g16 asym"))
