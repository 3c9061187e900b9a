"""``claims/assets.toml``: which files an asset consists of, their sha256, licence and public source."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bitwright.errors import InputError, nearest_key

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One asset: ``files`` maps names inside the assets folder to sha256; ``uses`` names further entries it needs."""

    name: str
    kind: str
    title: str
    licence: str
    source: str
    files: dict[str, str]
    figure: str = ""
    uses: tuple[str, ...] = ()
    package: str = ""


def read_manifest(path: Path) -> dict[str, Entry]:
    """Read the list of assets by name.

    Raises:
        InputError: if the file is missing or not of this form, or an entry uses one that is not listed.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if content.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{path} has format_version {content.get('format_version')}, not {FORMAT_VERSION}; update")
        entries = TypeAdapter(list[Entry]).validate_python(content.get("asset", []), strict=False)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of assets ({error}); take it from the repository") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: entry {where} is wrong ({first['msg']}); mend the entry") from error
    table = {entry.name: entry for entry in entries}
    for entry in entries:
        for used in entry.uses:
            if used not in table:
                raise InputError(f"{path}: {entry.name} uses {used!r}, which is not listed; {nearest_key(used, table)}")
    return table


def check_files(manifest: dict[str, Entry], name: str, folder: Path) -> None:
    """Compare every file of an asset, and of the entries it uses, with the listed sha256.

    Raises:
        InputError: if the asset is unknown, a file is missing, or one has another content.
    """
    if name not in manifest:
        raise InputError(f"no asset {name!r} is listed; {nearest_key(name, manifest)}")
    for entry in (manifest[name], *(manifest[used] for used in manifest[name].uses)):
        for file, expected in entry.files.items():
            place = folder / file
            try:
                with place.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{place} cannot be read ({error.strerror}); get it from {entry.source}") from error
            if found != expected:
                raise InputError(f"{place} is not the file that is listed (sha256 {found[:12]}...); get it again")
