"""Numbers with nouns that agree with them."""


def quantity(number: int, noun: str, plural: str = "") -> str:
    """Return `1 document`, `2,500 documents`; `plural` is needed if it is not the noun and `s`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
