"""Reads flat values out of many JSON objects in one compiled pass, for objects that need no judgement.

`scan` accepts an object only if reading it cannot depend on how a JSON library reads strange input. It refuses escapes,
exponents, integers of more than 18 digits, repeated fields, fields of another type, and whatever is not JSON; the
caller decodes these one by one. Shapes: N objects, F fields, K keys.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from streaming.arrays import BoolArray, Float64Array, Int64Array, UInt8Array
from streaming.field_paths import Path

ABSENT, INTEGER, REAL, TEXT, LONG_REAL = range(5)
"""What a field is; of a text and of a real with many digits, the place in the data is returned."""
REFUSED, ASCII, UTF8 = range(3)
"""What an object is: to be decoded otherwise, or read, with or without bytes above 127."""

_ANY, _ID, _INTEGER, _NUMBER, _TEXT = range(5)
_ROOT, _UNUSED = 0, -1
_DEEPEST = 32
_MOST_DIGITS = 18
_EXACT = 2**53
_POWERS = np.array([float(10**n) for n in range(_MOST_DIGITS + 1)])


class Fields(NamedTuple):
    """Where fields are, as a tree of keys.

    Attributes:
        names: UTF-8 of all keys, one after another.
        start_K: where each key begins, and the end of the last (k + 1,).
        parent_K: the object that each key is in; 0 is the outermost.
        target_K: the key's field; for a key of an object, F plus its number.
        type_F: the values that a field may have.
    """

    names: UInt8Array
    start_K: Int64Array
    parent_K: Int64Array
    target_K: Int64Array
    type_F: Int64Array


class Found(NamedTuple):
    """The fields of N objects.

    Attributes:
        status_N: REFUSED, ASCII, or UTF8; the fields of refused ones are undefined.
        kind_FN: ABSENT (also null), INTEGER, REAL, TEXT, or LONG_REAL.
        start_FN: the integer; of a text or long real, where it begins in the data.
        end_FN: where it ends.
        real_FN: the real.
    """

    status_N: UInt8Array
    kind_FN: UInt8Array
    start_FN: Int64Array
    end_FN: Int64Array
    real_FN: Float64Array


def fields_of(
    paths: Mapping[str, Path], ids: tuple[str, ...], integers: tuple[str, ...], texts: tuple[str, ...]
) -> Fields | None:
    """Where the scanner looks for fields; None if one path is the beginning of another, or the record itself.

    Args:
        paths: keys from the outermost object to the field, by field.
        ids: fields that are required, and hold integers or texts.
        integers: fields that are required, and hold integers.
        texts: fields that hold texts. All others hold numbers.
    """
    kinds = {**dict.fromkeys(ids, _ID), **dict.fromkeys(integers, _INTEGER), **dict.fromkeys(texts, _TEXT)}
    return _fields(tuple(paths.values()), tuple(kinds.get(name, _NUMBER) for name in paths))


@lru_cache(maxsize=16)
def _fields(paths: tuple[Path, ...], types: tuple[int, ...]) -> Fields | None:
    objects: dict[Path, int] = {(): _ROOT}
    keys: list[tuple[str, int, int]] = []
    for path in paths:
        for length in range(1, len(path)):
            if path[:length] not in objects:
                objects[path[:length]] = len(objects)
                keys.append(
                    (path[length - 1], objects[path[: length - 1]], len(paths) + objects[path[:length]])
                )
    if len(set(paths)) < len(paths) or set(paths) & set(objects) or len(objects) > _DEEPEST:
        return None
    keys += [(path[-1], objects[path[:-1]], field) for field, path in enumerate(paths)]
    names = [name.encode() for name, _, _ in keys]
    return Fields(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)]),
        np.array([parent for _, parent, _ in keys]),
        np.array([target for _, _, target in keys]),
        np.array(types),
    )


def scan(data: bytes, end_N: Int64Array, fields: Fields) -> Found:
    """The fields of each object.

    Args:
        data: the objects, one directly after another.
        end_N: where each ends.
        fields: which to read.
    """
    shape = (len(fields.type_F), len(end_N))
    found = Found(
        np.empty(len(end_N), np.uint8),
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.float64),
    )
    _scan(np.frombuffer(data, np.uint8), end_N, fields, found)
    return found


@njit(cache=True, nogil=True)
def _scan(data: UInt8Array, end_N: Int64Array, fields: Fields, found: Found) -> None:
    container = np.empty(_DEEPEST + 1, np.int64)
    is_object = np.empty(_DEEPEST + 1, np.bool_)
    start = 0
    for n in range(len(end_N)):
        end = end_N[n]
        found.status_N[n] = _read(data, start, end, fields, found, n, container, is_object)
        if found.status_N[n] != REFUSED and not _fits(fields.type_F, found, n):
            found.status_N[n] = REFUSED
        start = end


@njit(cache=True, nogil=True)
def _fits(type_F: Int64Array, found: Found, n: int) -> bool:
    for f in range(len(type_F)):
        kind, of_field = found.kind_FN[f, n], type_F[f]
        if of_field == _ID:
            is_text = kind == TEXT and found.end_FN[f, n] > found.start_FN[f, n]
            if kind != INTEGER and not is_text:
                return False
        elif of_field == _INTEGER:
            if kind != INTEGER:
                return False
        elif of_field == _TEXT:
            if kind != TEXT and kind != ABSENT:
                return False
        elif kind == TEXT:
            return False
    return True


@njit(cache=True, nogil=True)
def _read(
    data: UInt8Array,
    at: int,
    end: int,
    fields: Fields,
    found: Found,
    n: int,
    container: Int64Array,
    is_object: BoolArray,
) -> int:
    """Reads one object; returns its status. `container` and `is_object` are scratch space."""
    at = _skip_space(data, at, end)
    if at == end or data[at] != 123:  # {
        return REFUSED
    at, depth, is_first, status, seen = at + 1, 0, True, ASCII, 0
    container[0], is_object[0] = _ROOT, True
    number_of_fields = len(fields.type_F)
    while True:
        at = _skip_space(data, at, end)
        if at == end:
            return REFUSED
        target = _UNUSED
        closes = is_first and data[at] == (125 if is_object[depth] else 93)  # } or ]
        if not closes:
            if is_object[depth]:
                if data[at] != 34:  # "
                    return REFUSED
                stop, is_ascii = _end_of_text(data, at + 1, end)
                if stop < 0:
                    return REFUSED
                status = status if is_ascii else UTF8
                target = _target(data, at + 1, stop, fields, container[depth])
                at = _skip_space(data, stop + 1, end)
                if at == end or data[at] != 58:  # :
                    return REFUSED
                at = _skip_space(data, at + 1, end)
                if at == end:
                    return REFUSED
                if target >= 0:
                    if seen >> target & 1:
                        return REFUSED
                    seen |= 1 << target
            is_first = False
            first = data[at]
            if first == 123 or first == 91:  # { or [
                if depth == _DEEPEST or 0 <= target < number_of_fields or (target >= 0 and first == 91):
                    return REFUSED
                depth += 1
                container[depth] = target - number_of_fields if target >= 0 else _UNUSED
                is_object[depth] = first == 123
                is_first = True
                at += 1
                continue
            if first == 110:  # null, which is as good as absent
                if not _is(data, at, end, 110, 117, 108, 108):
                    return REFUSED
                at += 4
            elif first == 34:
                stop, is_ascii = _end_of_text(data, at + 1, end)
                if stop < 0 or target >= number_of_fields:
                    return REFUSED
                status = status if is_ascii else UTF8
                if target >= 0:
                    found.kind_FN[target, n] = TEXT
                    found.start_FN[target, n], found.end_FN[target, n] = at + 1, stop
                at = stop + 1
            elif first == 116 or first == 102:  # true or false
                if target >= 0:
                    return REFUSED
                if first == 116 and _is(data, at, end, 116, 114, 117, 101):
                    at += 4
                elif first == 102 and _is(data, at + 1, end, 97, 108, 115, 101):
                    at += 5
                else:
                    return REFUSED
            else:
                if target >= number_of_fields:
                    return REFUSED
                at = _number(data, at, end, found, target, n)
                if at < 0:
                    return REFUSED
            at = _skip_space(data, at, end)
        while at < end and data[at] == (125 if is_object[depth] else 93):
            depth -= 1
            at = _skip_space(data, at + 1, end)
            if depth < 0:
                return status if at == end else REFUSED
        if at == end or data[at] != 44:  # ,
            return REFUSED
        at += 1
        is_first = False


@njit(cache=True, nogil=True)
def _skip_space(data: UInt8Array, at: int, end: int) -> int:
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _end_of_text(data: UInt8Array, at: int, end: int) -> tuple[int, bool]:
    """Where the closing quotation mark is, or -1 if there is an escape or a control character before it."""
    is_ascii = True
    while at < end:
        byte = data[at]
        if byte == 34:
            return at, is_ascii
        if byte == 92 or byte < 32:  # backslash
            return -1, False
        is_ascii &= byte < 128
        at += 1
    return -1, False


@njit(cache=True, nogil=True)
def _target(data: UInt8Array, start: int, stop: int, fields: Fields, parent: int) -> int:
    for k in range(len(fields.parent_K)):
        begin = fields.start_K[k]
        length = fields.start_K[k + 1] - begin
        if fields.parent_K[k] != parent or length != stop - start:
            continue
        same = 0
        while same < length and data[start + same] == fields.names[begin + same]:
            same += 1
        if same == length:
            return int(fields.target_K[k])
    return _UNUSED


@njit(cache=True, nogil=True)
def _is(data: UInt8Array, at: int, end: int, a: int, b: int, c: int, d: int) -> bool:
    if at + 4 > end:
        return False
    return bool(data[at] == a and data[at + 1] == b and data[at + 2] == c and data[at + 3] == d)


@njit(cache=True, nogil=True)
def _number(data: UInt8Array, at: int, end: int, found: Found, target: int, n: int) -> int:
    """Reads a number; returns where it ends, or -1 if it is refused."""
    start, digits, after_point, mantissa = at, 0, 0, 0
    negative = data[at] == 45  # -
    at += 1 if negative else 0
    whole = at
    while at < end and 48 <= data[at] <= 57:
        digits, mantissa = digits + 1, mantissa * 10 + (data[at] - 48) if digits < _MOST_DIGITS else mantissa
        at += 1
    if at == whole or (data[whole] == 48 and at > whole + 1):
        return -1
    is_real = at < end and data[at] == 46  # .
    if is_real:
        at += 1
        point = at
        while at < end and 48 <= data[at] <= 57:
            digits, mantissa = (
                digits + 1,
                mantissa * 10 + (data[at] - 48) if digits < _MOST_DIGITS else mantissa,
            )
            at += 1
        after_point = at - point
        if after_point == 0:
            return -1
    if at < end and (data[at] == 101 or data[at] == 69):  # e or E
        return -1
    if digits > _MOST_DIGITS and (not is_real or digits > 300):
        return -1
    if not is_real and negative and mantissa == 0:
        return -1
    if target < 0:
        return at
    if not is_real:
        found.kind_FN[target, n] = INTEGER
        found.start_FN[target, n] = -mantissa if negative else mantissa
    elif digits > _MOST_DIGITS or mantissa > _EXACT:
        found.kind_FN[target, n] = LONG_REAL
        found.start_FN[target, n], found.end_FN[target, n] = start, at
    else:
        # Both are exact, so the quotient is rounded once, as it should be.
        real = np.float64(mantissa) / _POWERS[after_point]
        found.kind_FN[target, n] = REAL
        found.real_FN[target, n] = -real if negative else real
    return at
