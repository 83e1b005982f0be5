"""Hosts of documents, and the split by host: what is trained on, what refiners are judged by."""

import hashlib
import re
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from proxhpc.corpus.records import lookup

VALIDATION = 0.15
"""Share of hosts whose documents are for validation."""

Split = Literal["train", "validation"]

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


def host_of(record: dict[str, Any], host: str, url: str) -> str:
    """The host that a record's field `host` names, or that of its `url`; empty without one.

    In small letters and in IDNA's ASCII form, without `www.` and without a port. A scheme may be
    missing, where what stands first has a dot.
    """
    named, address = lookup(record, host), lookup(record, url)
    if isinstance(named, str) and (found := _clean(named)):
        return found
    found = _clean(address) if isinstance(address, str) else ""
    return found if "." in found or (isinstance(address, str) and _SCHEME.match(address)) else ""


def _clean(address: str) -> str:
    """The host of a URL, or of what stands where a host does (RFC 3986 section 3.2)."""
    address = address.strip()
    with suppress(ValueError):  # IPv6 without its brackets, whose colons begin no port
        return str(ip_address(address))
    try:
        found = urlsplit(address if _SCHEME.match(address) else f"//{address}").hostname or ""
    except ValueError:  # no address: brackets that do not match, letters that are marks
        return ""
    with suppress(UnicodeError):  # longer or stranger than IDNA allows; a name all the same
        found = found if found.isascii() else found.encode("idna").decode()
    return found.lower().rstrip(".").removeprefix("www.")


def split_of(host: str, text: str) -> Split:
    """The split of all documents of a host; of a text by itself where its host is unknown.

    It depends on nothing else, so that whoever asks gets the same answer.
    """
    digest = hashlib.sha256((host or text).encode("utf-8", "surrogatepass")).hexdigest()
    return "validation" if int(digest[:8], 16) / 2**32 < VALIDATION else "train"
