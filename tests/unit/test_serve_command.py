"""The command as users run it: a process, the official client, signals, keys."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="serving needs the extra `serve`")

from bitwright.cli.main import run
from bitwright.errors import InputError
from bitwright.serving.keys import check_open, read_keys
from bitwright.serving.server import bind, is_local, url

KEY = "a-long-enough-key"


class Process:
    """``bitwright serve zoo`` on a free port."""

    def __init__(self, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "bitwright.cli.main",
            "serve",
            "zoo",
            "--port",
            "0",
            "--json",
            "--threads",
            "1",
        ]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end(signal.SIGKILL)
        self.start: dict[str, Any] = json.loads(line)

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.start['url']}/health", timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# of the test\n{KEY}\n", encoding="utf-8")
    process = Process("--api-key-file", str(keys), "--name", "mini", "--grace", "20")
    yield process
    if process.process.poll() is None:
        process.end(signal.SIGKILL)


@pytest.mark.fresh_process
def test_the_official_client_talks_to_the_process_and_sigterm_ends_it(server: Process) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    assert server.start["model"] == "mini"
    assert server.start["key"] is True
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.start["base_url"], api_key="wrong-key", max_retries=0).models.list()
    with openai.OpenAI(base_url=server.start["base_url"], api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["mini"]
        options: dict[str, Any] = {"model": "mini", "prompt": "def main(", "temperature": 0.8, "seed": 3}
        whole = client.completions.create(**options, max_tokens=12)
        assert whole.usage.completion_tokens == 12
        assert whole.choices[0].finish_reason in ("length", "stop")
        events = list(client.completions.create(**options, max_tokens=12, stream=True))
        assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "hello"}])
        endless = {"logit_bias": {"0": -100}, "max_tokens": 400}
        left = client.completions.create(**options, **endless, stream=True)
        next(iter(left))
        left.close()
        deadline = time.monotonic() + 30
        while server.health()["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # An answer that runs when the signal comes is finished.
        stream = iter(client.completions.create(**options, logit_bias={"0": -100}, max_tokens=60, stream=True))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "length"
    out, err = server.process.communicate(timeout=60)
    assert server.process.returncode == 0, err
    assert out == ""
    assert "Traceback" not in err
    assert "def main" not in err


def _metrics(start: dict[str, Any], key: str) -> dict[str, int]:
    request = urllib.request.Request(f"{start['url']}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        lines = [line.split(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("bitwright_"): int(value) for name, value in lines}


@pytest.mark.fresh_process
def test_clients_at_the_same_time_get_what_they_get_alone() -> None:
    """A bounded load: 6 official clients, 3 streamed answers each, in one step per token on the compiled decoder."""
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    process = Process("--api-key", KEY, "--parallel", "6", "--prompt-cache", "0MB")
    prompts = ["def main(", "import", "class A:", "return x", "for i in", "while"]
    length = 40

    def ask(number: int, rounds: int) -> list[str]:
        with openai.OpenAI(base_url=process.start["base_url"], api_key=KEY, max_retries=0, timeout=60) as client:
            texts = []
            for turn in range(rounds):
                stream = client.completions.create(
                    model=process.start["model"], prompt=prompts[number], max_tokens=length, temperature=0.7, seed=turn,
                    logit_bias={"0": -100}, stream=True,
                )  # fmt: skip
                texts.append("".join(event.choices[0].text for event in stream if event.choices))
            return texts

    try:
        alone = [ask(number, 1)[0] for number in range(len(prompts))]
        before = _metrics(process.start, KEY)
        assert before["steps_total"] == before["step_rows_total"] == len(prompts) * (length - 1)
        with ThreadPoolExecutor(len(prompts)) as pool:
            found = list(pool.map(lambda number: ask(number, 3), range(len(prompts))))
        assert [texts[0] for texts in found] == alone
        after = _metrics(process.start, KEY)
        steps = after["steps_total"] - before["steps_total"]
        rows = after["step_rows_total"] - before["step_rows_total"]
        assert rows == 3 * len(prompts) * (length - 1)
        assert steps < rows / 1.5  # most steps were taken by several together
        assert after["answer_errors_total"] == 0
    finally:
        code, _, err = process.end(signal.SIGTERM)
    assert code == 0, err


def test_addresses_are_bound_before_the_model_is_read() -> None:
    with bind("127.0.0.1", 0) as bound:
        assert is_local(bound)
        assert url(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        bound.listen()
        with pytest.raises(InputError, match="cannot listen"):
            bind("127.0.0.1", bound.getsockname()[1])
    with bind("0.0.0.0", 0) as bound:
        assert not is_local(bound)
    with pytest.raises(InputError, match="no address"):
        bind("no such host", 0)
    if socket.has_ipv6:
        try:
            bound = bind("::1", 0)
        except InputError:
            return
        with bound:
            assert is_local(bound)
            assert url(bound).startswith("http://[::1]:")


def test_keys_come_from_the_command_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# one per line\n\nfirst-key-1\n second-key-2 \n", encoding="utf-8")
    assert read_keys("third-key-3", file) == ("third-key-3", "first-key-1", "second-key-2")
    assert read_keys(None, None) == ()
    for wrong in ("short", "with a space", "uml\u00e4ut-key-1"):
        with pytest.raises(InputError, match="ASCII"):
            read_keys(wrong, None)
    file.write_text("# none\n", encoding="utf-8")
    with pytest.raises(InputError, match="no key"):
        read_keys(None, file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no text file"):
        read_keys(None, file)


def test_nobody_serves_everybody_by_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    check_open(True, (), False)
    check_open(False, (KEY,), False)
    check_open(False, (), True)
    with pytest.raises(InputError, match="contradict"):
        check_open(False, (KEY,), True)
    assert run(["serve", "zoo", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--api-key-file" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve", "zoo"]) == 2
    assert "pip install 'bitwright[serve]'" in capsys.readouterr().err


def test_generate_draws_by_the_same_rules(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "zoo", "--prompt", "def main(", "--tokens", "24", "--temperature", "0.9", "--json"]

    def text(*options: str) -> str:
        assert run([*command, *options]) == 0
        found: str = json.loads(capsys.readouterr().out)["text"]
        return found

    drawn = text("--top-k", "50", "--min-p", "0.001", "--seed", "4")
    assert drawn != text("--seed", "5")
    assert drawn == text("--top-k", "50", "--min-p", "0.001", "--seed", "4")
    stop = drawn[5:8]
    assert text("--top-k", "50", "--min-p", "0.001", "--seed", "4", "--stop", stop) == drawn[: drawn.find(stop)]
    assert run([*command, "--top-p", "0"]) == 2


def test_importing_bitwright_brings_no_server() -> None:
    ask = "import sys, bitwright, bitwright.cli.commands.serve; sys.exit('starlette' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0
