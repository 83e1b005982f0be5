"""The fields of a corpus's rows and their types, which the dataset card names for `datasets`.

`datasets` infers the types of JSON lines from the first ones and stops at rows with other fields.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# The name of a scalar type, the fields of an object, or a list with the shape of its items.
RowShape = str | dict[str, Any] | list[Any]

_SCALARS = {bool: "bool", int: "int64", float: "float64", str: "string", type(None): "null"}
MIXED = "mixed"  # of values that have no type in common


_MAX_FIELDS = 500  # keys that are data, such as URLs, are no fields
_MAX_SHAPES = 10_000


class ShapeCollector:
    """Merges the shapes of rows; equal ones are merged once."""

    def __init__(self) -> None:
        self.shape: RowShape = {}
        self._seen: set[Any] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        if self.shape == MIXED:
            return
        signature = _signature(row)
        if signature not in self._seen:
            self._seen.add(signature)
            self.shape = merge_shapes([self.shape, _shape(row)])
            if len(self._seen) > _MAX_SHAPES or _count(self.shape) > _MAX_FIELDS:
                self.shape = MIXED


def _count(shape: RowShape) -> int:
    inner = shape.values() if isinstance(shape, dict) else shape if isinstance(shape, list) else ()
    return 1 + sum(map(_count, inner))


def _signature(value: Any) -> Any:
    """Return something hashable that is equal for values of equal shape."""
    kind = type(value)
    if kind is dict:
        return tuple([(key, _signature(item)) for key, item in value.items()])
    if kind is list:
        return frozenset(map(_signature, value))
    return kind


def _shape(value: Any) -> RowShape:
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [merge_shapes(map(_shape, value))]
    return _SCALARS.get(type(value), MIXED)


def merge_shapes(shapes: Iterable[RowShape]) -> RowShape:
    """Return the shape of values that have one of these shapes; `null` for none."""
    merged: RowShape = "null"
    for shape in shapes:
        if merged == shape or shape == "null":
            continue
        if merged == "null":
            merged = shape
        elif isinstance(merged, dict) and isinstance(shape, dict):
            names = {**merged, **shape}
            merged = {n: merge_shapes(s[n] for s in (merged, shape) if n in s) for n in names}
        elif isinstance(merged, list) and isinstance(shape, list):
            merged = [merge_shapes([*merged, *shape])]
        else:
            merged = "float64" if {str(merged), str(shape)} == {"int64", "float64"} else MIXED
    return merged


def features(shape: RowShape) -> list[Any]:
    """Return the shape as `dataset_info.features` of a card; none if a field's types are mixed."""
    try:
        return _features(shape)
    except _MixedError:
        return []


class _MixedError(Exception):
    pass


def _features(shape: RowShape) -> list[Any]:
    if not isinstance(shape, dict):
        raise _MixedError
    return [{"name": name, **_feature(item)} for name, item in shape.items()]


def _feature(shape: RowShape) -> dict[str, Any]:
    if isinstance(shape, dict):
        return {"struct": _features(shape)}
    if isinstance(shape, list):
        [item] = shape
        if isinstance(item, dict):
            return {"list": _features(item)}
        inner = _feature(item)
        return {"list": inner.get("dtype", inner)}
    if shape == MIXED:
        raise _MixedError
    return {"dtype": shape}
