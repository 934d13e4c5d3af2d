"""Where two states of a run differ."""

import hashlib

from cluster.audit.state import State, contents


def digests(state: State) -> dict[str, str]:
    """The digest of each part of a state."""
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in contents(state)}
