"""``enginewright serve --ray``: the application on a cluster, until a signal."""

from __future__ import annotations

import dataclasses
import signal
import threading
from typing import Any

import ray
from ray import serve

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.auth import read_keys
from enginewright.server.options import ServeOptions
from enginewright.server.ray_serve.application import bind
from enginewright.server.ray_serve.options import APPLICATION, RayOptions


def run_over_ray(options: ServeOptions, how: RayOptions, address: str | None) -> None:
    """Serve on the cluster at ``address``, or on one of this machine alone.

    A signal takes the application away: what runs has ``drain_timeout`` to end.
    """
    if options.uds is not None:
        raise EnginewrightError("uds with ray: Ray Serve listens on host and port; leave uds out")
    # The environment of replicas is that of their machine: keys travel with the options.
    options = dataclasses.replace(options, api_key=tuple(read_keys(options)), api_key_file=None)
    ray.init(address=address or "local", include_dashboard=False, log_to_driver=False)
    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):  # now: Ray has set its own
        signal.signal(each, lambda *_: stop.set())
    try:
        serve.start(proxy_location="EveryNode", http_options=_listening(options))
        serve.run(bind(options, how), name=APPLICATION, route_prefix=options.root_path or "/")
        stop.wait()
        serve.delete(APPLICATION)
        if address is None:
            shutdown: Any = serve.shutdown
            shutdown()
    finally:
        ray.shutdown()


def _listening(options: ServeOptions) -> dict[str, Any]:
    found: dict[str, Any] = {"host": options.host, "port": options.port}
    if options.ssl_certfile is not None:
        names = ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs")
        found |= {name: getattr(options, name) for name in names}
    return found
