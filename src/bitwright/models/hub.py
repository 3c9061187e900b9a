"""Find a model on the disk, or fetch it from the hub into the hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from bitwright.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights as safetensors, configs and tokenizers; no pickles, no code.
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README.md")


def local_folder(source: str | Path) -> Path:
    """The folder of ``source``: itself where it exists, else the hub's snapshot of ``owner/model``.

    Raises:
        InputError: when it is neither, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
    if not _NAME.fullmatch(name):
        raise InputError(f"{name}: no such folder or file; give a folder that holds config.json and safetensors")
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{name}: is no folder, and the hub needs huggingface_hub; install bitwright[hf]") from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(f"{name}: is no folder here and cannot be fetched from the hub ({reason})") from error
