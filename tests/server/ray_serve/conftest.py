"""A cluster of two Ray nodes on this machine."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

PATIENCE = 120.0
_AGENTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until it answers with a good status."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, each with the CPUs for one replica; one CPU more, for Ray's router."""
    pytest.importorskip("ray.serve", reason="the extra ray is not installed")
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    # A raylet waits 15 s for its agents to tell ports of their own choice, and then dies
    # (ray-project/ray#65983); for ports that it is given it does not wait.
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, **_agent_ports()})
    try:
        found.add_node(num_cpus=2, **_agent_ports())
        ray.init(address=found.address, log_to_driver=False)
        serve.start(
            proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": free_port()}
        )
        yield found
        serve.shutdown()
    finally:
        ray.shutdown()
        found.shutdown()


def _agent_ports() -> dict[str, int]:
    return {name: free_port() for name in _AGENTS}
