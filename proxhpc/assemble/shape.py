"""The fields of a corpus's rows and their types, which the dataset card names for `datasets`.

`datasets` infers the types of JSON lines from the first ones and stops at rows with other fields.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from proxhpc.assemble.rows import decode_row
from proxhpc.spec.sections import Output

# The name of a scalar type, the fields of an object, or a list with the shape of its items.
RowShape = str | dict[str, Any] | list[Any]

_SCALARS = {bool: "bool", int: "int64", float: "float64", str: "string", type(None): "null"}
MIXED = "mixed"  # of values that have no type in common


_MAX_FIELDS = 500  # keys that are data, such as URLs, are no fields
_MAX_SHAPES = 10_000


def column_names(output: Output) -> list[str]:
    """The columns, all of strings that are never null."""
    optional = {
        "proxhpc": output.provenance or output.cluster_size,
        "original_text": output.original,
    }
    return ["id", "text", "metadata", *(name for name, wanted in optional.items() if wanted)]


def text_shape(output: Output) -> RowShape:
    """Return the fields of rows of text."""
    return dict.fromkeys(column_names(output), "string")


class ShapeCollector:
    """Merges the shapes of rows; equal ones are merged once."""

    def __init__(self) -> None:
        self.shape: RowShape = {}
        self._last: RowShape = {}
        self._seen: set[bytes] = set()

    def add(self, shape: RowShape) -> None:
        """Add the shape of a row."""
        if shape is self._last or self.shape == MIXED:
            return
        self._last = shape
        if (key := orjson.dumps(shape)) not in self._seen:
            self._seen.add(key)
            self.shape = merge_shapes([self.shape, shape])
            if len(self._seen) > _MAX_SHAPES or _count(self.shape) > _MAX_FIELDS:
                self.shape = MIXED


class Shapes:
    """The shapes of rows; rows with the same fields and types share one object."""

    def __init__(self, output: Output) -> None:
        self._fixed: RowShape | None = None if output.metadata == "fields" else text_shape(output)
        self._known: dict[Any, RowShape] = {}

    def of_line(self, line: bytes) -> RowShape:
        """Return the shape of a row that was written as JSON."""
        return self.of({} if self._fixed is not None else decode_row(line))

    def of(self, row: Mapping[str, Any]) -> RowShape:
        """Return the shape of a row as it is written."""
        if self._fixed is not None:
            return self._fixed
        signature = _signature(row)
        shape = self._known.get(signature)
        if shape is None:
            shape = _shape(row)
            if _count(shape) > _MAX_FIELDS:
                shape = MIXED
            if len(self._known) < _MAX_SHAPES:
                self._known[signature] = shape
        return shape


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
