"""Hosts of documents, and the split by host: what is trained on, what refiners are judged by."""

import hashlib
import re
from typing import Any, Literal

from proxhpc.corpus.records import lookup

VALIDATION = 0.15
"""Share of hosts whose documents are for validation."""

Split = Literal["train", "validation"]

_HOST = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//(?:[^/?#@]*@)?([^/?#:\[\]]+)", re.IGNORECASE)


def host_of(record: dict[str, Any], host: str, url: str) -> str:
    """The host that a record's field `host` names, or that of its `url`; empty without one.

    In small letters, without `www.` and without a port.
    """
    named, address = lookup(record, host), lookup(record, url)
    found = named.strip() if isinstance(named, str) else ""
    if not found and isinstance(address, str) and (match := _HOST.match(address.strip())):
        found = match.group(1)
    return found.lower().rstrip(".").removeprefix("www.")


def split_of(host: str, text: str) -> Split:
    """The split of all documents of a host; of a text by itself where its host is unknown.

    It depends on nothing else, so that whoever asks gets the same answer.
    """
    digest = hashlib.sha256((host or text).encode("utf-8", "surrogatepass")).hexdigest()
    return "validation" if int(digest[:8], 16) / 2**32 < VALIDATION else "train"
