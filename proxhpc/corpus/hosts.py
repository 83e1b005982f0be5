"""Hosts and URLs of documents, and the split by host into training and validation."""

import hashlib
import re
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from proxhpc.corpus.records import get_field

VALIDATION = 0.15
"""Share of hosts whose documents are in the validation split."""

Split = Literal["train", "validation"]

_WEB = re.compile(r"(?:https?:)?//([^/?#]*)([^?#]*)(?:\?([^#]*))?(#[!/].*)?", re.IGNORECASE)
_TRACKING = re.compile(r"(?:utm_[^=]*|gclid|fbclid)(?:=.*)?", re.IGNORECASE)
_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


def host_of(record: dict[str, Any], host: str, url: str) -> str:
    """Return the host in a record's field `host`, or else of the URL in `url`, or "".

    It is lowercase and in IDNA's ASCII form, without `www.` and port. A URL without a scheme
    counts if its host has a dot.
    """
    named, address = get_field(record, host), get_field(record, url)
    if isinstance(named, str) and (name := _normalized(named)):
        return name
    name = _normalized(address) if isinstance(address, str) else ""
    return name if "." in name or (isinstance(address, str) and _SCHEME.match(address)) else ""


def canonical_url(url: str) -> str:
    """Return a URL in a form that is equal for URLs of one page.

    `http` and `https`, upper case in a host, ports 80 and 443, a final dot of the host, a fragment
    unless it begins with `!` or `/`, and parameters that only say where a visitor came from do not
    matter. All else does, `www.` and the order of parameters included. Other text stays as it is,
    but for white space around it.
    """
    url = url.strip()
    match = _WEB.match(url)
    if match is None:
        return url
    host, path, query, fragment = match.groups()
    name, _, port = host.lower().rpartition(":")
    host = (name if port in ("", "80", "443") else host.lower()).rstrip(".")
    kept = [each for each in (query or "").split("&") if not _TRACKING.fullmatch(each)]
    query = "&".join(kept)
    return f"//{host}{path or '/'}{'?' if query else ''}{query}{fragment or ''}"


def _normalized(address: str) -> str:
    """Return the host of a URL, or of a URL without its scheme (RFC 3986 section 3.2)."""
    address = address.strip()
    with suppress(ValueError):  # the colons of an IPv6 address without brackets start no port
        return str(ip_address(address))
    try:
        name = urlsplit(address if _SCHEME.match(address) else f"//{address}").hostname or ""
    except ValueError:  # not a URL: unbalanced brackets, or letters that normalize to delimiters
        return ""
    with suppress(UnicodeError):  # a name that IDNA does not allow still identifies a host
        name = name if name.isascii() else name.encode("idna").decode()
    return name.lower().rstrip(".").removeprefix("www.")


def split_of(host: str, text: str) -> Split:
    """Return the split of a document. It depends only on the host, or on the text without one."""
    digest = hashlib.sha256((host or text).encode("utf-8", "surrogatepass")).hexdigest()
    return "validation" if int(digest[:8], 16) / 2**32 < VALIDATION else "train"
