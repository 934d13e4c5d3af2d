"""The packages of the extra `formats`, imported when they are needed."""

import importlib
from typing import Any

from streaming.config import StreamSettingError


def package(name: str) -> Any:
    """A module of the extra `formats`.

    Raises:
        StreamSettingError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StreamSettingError(
            f"stream.message_format needs the module {name!r}: install freshet[formats]"
        ) from error
