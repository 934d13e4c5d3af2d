"""Takes the place of Ray's dashboard agent in an own instance; a program, run without site packages.

Ray's raylet starts an agent, waits until it has stored its ports, and ends if the agent ends. Ray's own agent imports
the whole dashboard, which takes three seconds of CPU time and 130 MB, and serves a dashboard that an own instance does
not have.
"""

from __future__ import annotations

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
_NOT_SERVED = "-1"
_POLL_S = 1.0


def main(arguments: list[str]) -> None:
    """Store that no port is served, then wait until the raylet has ended.

    Args:
        arguments: those of Ray's agent, of which `--session-dir=` and `--node-id=` are used.
    """
    raylet = os.getppid()
    named = dict(word[2:].split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
    for port in PORTS:
        path = os.path.join(named["session-dir"], f"{port}_{named['node-id']}")
        with open(f"{path}.new", "w") as file:
            file.write(_NOT_SERVED)
        os.replace(f"{path}.new", path)  # the raylet must not read an empty file
    while os.getppid() == raylet:
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(sys.argv[1:])
