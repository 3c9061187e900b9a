"""The clock and the report that the scripts timing one block share."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from block import read_block, write_block


class Parts:
    """Wall and processor seconds of the named parts of a run."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.spent = dict.fromkeys(("hessian", "solve", "hessian_processor", "solve_processor"), 0.0)

    @contextmanager
    def counted(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `part`, which is `hessian` or `solve`."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.spent[part] += time.perf_counter() - wall
        self.spent[f"{part}_processor"] += time.process_time() - processor


def report(
    description: str, peer: str, version: str, parts: Parts, quantize: Callable[[torch.nn.Module, torch.Tensor], None]
) -> None:
    """Quantize the block once and print one line of JSON; what is in no part counts as `rest`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_block(options.work)
    model, rows = read_block(options.work)
    load, processor, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
    quantize(model, rows)
    total, processor = time.perf_counter() - start, time.process_time() - processor
    spent = parts.spent
    found = {
        "seconds": total,
        "hessian": spent["hessian"],
        "solve": spent["solve"],
        "rest": total - spent["hessian"] - spent["solve"],
        "processor": processor,
        "hessian_processor": spent["hessian_processor"],
        "solve_processor": spent["solve_processor"],
        "rest_processor": processor - spent["hessian_processor"] - spent["solve_processor"],
        "load_average": load,
    }
    facts = {"peer": peer, "version": version, "method": "gptq int4 g128 sym", "threads": options.threads}
    print(json.dumps(facts | {part: round(value, 2) for part, value in found.items()}))
