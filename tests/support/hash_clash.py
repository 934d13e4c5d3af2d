"""Two texts with one xxh64: the lanes of the algorithm can be inverted, so anyone can make such a pair."""

import itertools

_MASK = (1 << 64) - 1
_P1, _P2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F


def _round(state: int, lane: int) -> int:
    state = (state + lane * _P2) & _MASK
    return (((state << 31) | (state >> 33)) * _P1) & _MASK


def two_texts_with_one_hash(prefix: str = "user") -> tuple[str, str]:
    """Printable texts of 64 characters that differ in the first lane of both their stripes."""
    start = (_P1 + _P2) & _MASK
    first = f"{prefix:-<8}"[:8].encode()
    rest = b"=" * 24
    last = b"zzzzzzzz"
    wanted = (_round(start, int.from_bytes(first, "little")) + int.from_bytes(last, "little") * _P2) & _MASK
    back = pow(_P2, -1, 1 << 64)
    for letters in itertools.product(b"abcdefghijklmnopqrstuvwxyz0123456789", repeat=8):
        state = _round(start, int.from_bytes(bytes(letters), "little"))
        lane = (((wanted - state) & _MASK) * back & _MASK).to_bytes(8, "little")
        if all(32 < byte < 127 for byte in lane):
            other = bytes(letters) + rest + lane + rest
            return (first + rest + last + rest).decode(), other.decode()
    raise AssertionError("no pair found")
