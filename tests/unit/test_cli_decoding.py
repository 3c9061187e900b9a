"""generate, bench and serve as a user meets them: edges of what they take, the shapes of their JSON, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli.main import run
from bitwright.native import unavailable
from tests.unit.expert_toys import expert_model
from tests.unit.jobs_toys import save_model, tiny_llama

BENCH_KEYS = {"tokens_per_second", "prefill_tokens_per_second", "bytes_per_token", "bandwidth_share", "threads"}


def _json(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run([*command, "--json"]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert len(text.strip().splitlines()) == 1
    return json.loads(text)


def _refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Exit code 2, one sentence on standard error and nothing on standard output."""
    capsys.readouterr()
    assert run(list(command)) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "Traceback" not in found.err
    return " ".join(found.err.split())


def test_generate_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "generate", "zoo", "--prompt", "def main(", "--tokens", "5")
    assert found.keys() == {"format_version", "model", "prompt", "text", "decoder", "decoder_reason"}
    assert found["text"]
    assert (found["decoder"] == "native") == (found["decoder_reason"] is None) == (unavailable() is None)
    modules = _json(capsys, "generate", "zoo", "--prompt", "def main(", "--tokens", "5", "--no-native")
    assert (modules["decoder"], modules["decoder_reason"]) == ("modules", "it was not asked for")
    assert modules["text"] == found["text"]


def test_bench_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "bench", "zoo", "--prompt", "8", "--tokens", "4", "--repeats", "1", "--threads", "1")
    assert found.keys() >= BENCH_KEYS
    assert found["threads"] == 1
    assert all(found[key] > 0 for key in BENCH_KEYS)
    assert found["bandwidth_share"] == pytest.approx(
        found["tokens_per_second"] * found["bytes_per_token"] / found["bandwidth_bytes_per_second"]
    )


@pytest.mark.parametrize("command", [("generate", "--prompt", "x"), ("bench",), ("serve", "--port", "0")])
def test_what_is_no_language_model_of_ours(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command
    if name == "serve":
        pytest.importorskip("starlette", reason="serving needs the extra `serve`")
    assert "no such folder" in _refused(capsys, name, str(tmp_path / "nothing"), *options)
    assert "holds no safetensors weights" in _refused(capsys, name, str(tmp_path), *options)
    found = _refused(capsys, name, "zoo:digits", *options)
    assert "no language model" in found or "causal language models" in found
    assert "--threads" in _refused(capsys, name, "zoo", *options, "--threads", "0")


def test_prompts_that_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    found = _refused(capsys, "generate", "zoo", "--prompt", "def main(x): return x\n" * 200)
    assert "context 512; shorten it" in found
    for more in ((), ("--no-native",)):
        assert "do not fit the context of 512" in _refused(capsys, "bench", "zoo", "--prompt", "500", *more)
    assert "top_p is 1.5" in _refused(capsys, "generate", "zoo", "--prompt", "a", "--top-p", "1.5")
    assert "--tokens" in _refused(capsys, "generate", "zoo", "--prompt", "a", "--tokens", "0")


def test_a_model_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path / "model", tiny_llama(1))
    assert "tokenizer" in _refused(capsys, "generate", str(folder), "--prompt", "a")


@pytest.mark.skipif(unavailable() is not None, reason="compiled kernels are not there")
def test_a_network_that_the_compiled_step_cannot_express_runs_and_says_which_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert_model("Qwen3Moe").save_pretrained(tmp_path / "model")
    found = _json(capsys, "bench", str(tmp_path / "model"), "--prompt", "4", "--tokens", "2", "--repeats", "1")
    assert found["decoder"] == "modules"
    assert "model.layers.0" in found["decoder_reason"]
    assert found["decoder_error"] is None


@pytest.mark.fresh_process
def test_ctrl_c_ends_generate_with_130_and_keeps_what_was_written() -> None:
    command = [
        sys.executable, "-m", "bitwright.cli.main", "generate", "zoo", "--prompt", "def main(", "--tokens", "490",
        "--temperature", "1", "--no-native", "--threads", "1",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        # A shell that runs the tests in the background makes its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert first + out
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
