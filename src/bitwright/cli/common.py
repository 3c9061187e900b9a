"""Options that every command takes, so that a script need not know which ones a command has a use for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from bitwright.cli.options import NoVerify, Seed, Threads, use_threads

_COMMON: dict[str, tuple[Any, Any]] = {"seed": (Seed, 0), "threads": (Threads, None), "no_verify": (NoVerify, False)}


def with_common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with ``--seed``, ``--threads`` and ``--no-verify`` where it has them not.

    A number of threads holds for the whole process. A command without a seed of its own draws nothing, and one without
    ``--no-verify`` writes nothing to verify: there they are accepted and change nothing.
    """
    signature = inspect.signature(command, eval_str=True)
    missing = {name: value for name, value in _COMMON.items() if name not in signature.parameters}
    if not missing:
        return command

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name, default) for name, (_, default) in missing.items()}
        if given.get("threads") is not None:
            use_threads(given["threads"])
        return command(*args, **kwargs)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in missing.items()
    ]
    every = [*signature.parameters.values(), *added]
    run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in every}
    return run
