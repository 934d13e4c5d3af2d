"""A record's value that cannot be used as it was sent."""


class Unreadable(bytes):
    """The value of a record that cannot be used as it was sent.

    Attributes:
        reason: why, for people.
        length: bytes of the original; this may be only its beginning.
    """

    reason: str
    length: int

    def __new__(cls, original: bytes, reason: str, length: int) -> "Unreadable":
        """The original, or its beginning."""
        value = super().__new__(cls, original)
        value.reason, value.length = reason, length
        return value
