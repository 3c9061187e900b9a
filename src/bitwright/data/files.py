"""Files of strangers are measured before they are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bitwright.errors import InputError

MAX_TEXT_BYTES = 2**30  # read at once, and tokens take more
MAX_ARRAY_BYTES = 2**30


def check_file(path: Path, limit: int) -> None:
    """Refuse what has no end (a pipe, a device) and what is absurdly large, before anything is read.

    Raises:
        InputError: naming the file.
        OSError: if there is no such file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise InputError(f"{path}: is no regular file; give the path of one")
    if size > limit:
        raise InputError(f"{path}: has {size} bytes, at most {limit} are read at once; give a part of it")


def check_npz(path: Path, names: Iterable[str]) -> None:
    """Check the arrays ``names`` of an ``.npz`` file before they are unpacked: plain numbers of the size they claim.

    Raises:
        InputError: for an array that is too large, holds objects, or lies about its size.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in names:
                continue
            if member.file_size > MAX_ARRAY_BYTES:
                raise InputError(
                    f"{path}: {name!r} unpacks to {member.file_size} bytes; give at most {MAX_ARRAY_BYTES}"
                )
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                if dtype.hasobject:
                    raise InputError(f"{path}: {name!r} holds Python objects, which can run code; store numbers")
                if math.prod(shape) * dtype.itemsize + file.tell() != member.file_size:
                    raise InputError(f"{path}: {name!r} is not as large as its shape {shape} says; write it again")
