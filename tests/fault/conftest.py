"""What tests that kill jobs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bitwright.jobs import page
from tests.fault.killing import no_picture


@pytest.fixture
def single_thread_without_pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forked jobs compute with one thread (pools do not survive a fork) and draw nothing."""
    monkeypatch.setattr(page, "_figure", no_picture)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
