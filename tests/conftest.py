"""Options, fixtures and settings that all tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

# Tests are examples that must not change between runs; new ones are looked for by hand (--hypothesis-profile=search).
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist share the cores; more threads than cores make every test slower.
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _read_back_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read finished folders back in this process: a new one takes seconds to import torch.

    Tests marked ``fresh_process`` do it as users do.
    """
    if "fresh_process" in request.keywords:
        return
    from bitwright.jobs import verify

    def here(folder: Path, batch: dict[str, torch.Tensor], *, held: bool) -> tuple[torch.Tensor, tuple[str, ...]]:
        from bitwright.jobs.read_back import answer

        return answer(folder, batch, held=held)

    monkeypatch.setattr(verify, "answer_in_fresh_process", here)


@pytest.fixture(scope="session")
def assets(request: pytest.FixtureRequest) -> Path:
    """The folder given by ``--assets``; the test is skipped where it was not given."""
    folder: Path | None = request.config.getoption("--assets")
    if folder is None:
        pytest.skip("no real models: give their folder with --assets")
    if not folder.is_dir():
        raise pytest.UsageError(f"--assets {folder} is no folder")
    return folder.resolve()


@pytest.fixture(scope="session")
def toy_llama() -> LlamaForCausalLM:
    """A random Llama that runs in milliseconds: hidden 64, two layers, grouped queries, vocabulary 128.

    It is shared by all tests of a worker: copy it (``copy.deepcopy``) before changing it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        # Fresh linears are small enough to make every logit equal; wider ones give predictions that differ.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def toy_tokens() -> torch.Tensor:
    """Random token ids for the toy Llama, int64 ``[8, 32]``; every sequence begins with token 1."""
    import torch

    ids = torch.randint(3, 128, (8, 32), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 1
    return ids


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not item.config.getoption("--run-slow"):
        pytest.skip("slow: run with --run-slow")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
