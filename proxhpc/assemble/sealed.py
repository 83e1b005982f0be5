"""Small JSON files that show whether they are as they were written."""

from pathlib import Path

import xxhash

from proxhpc.assemble.bands import damaged

_SEAL = b',"seal":"%b"}\n'
_LENGTH = len(_SEAL % bytes(32))


def seal(data: bytes) -> bytes:
    """Return a JSON object on a line with the digest of that line as its last key."""
    return data.removesuffix(b"}\n") + _SEAL % _digest(data)


def unseal(path: Path) -> bytes:
    """Return what was sealed. FileNotFoundError; StopError where the file is another now."""
    raw = path.read_bytes()
    data = raw[:-_LENGTH] + b"}\n"
    if raw[-_LENGTH:] != _SEAL % _digest(data):
        raise damaged(path)
    return data


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_hexdigest(data).encode()
