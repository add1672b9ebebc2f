"""Where the server listens: made, or tried, before models load, so that errors come at once."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator

from enginewright.runtime.errors import EnginewrightError
from enginewright.server.options import ServeOptions


def check_tls(options: ServeOptions) -> None:
    """EnginewrightError where the files of TLS are none, or do not fit each other."""
    if options.ssl_keyfile is None or options.ssl_certfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile)
        context.verify_mode = ssl.VerifyMode(options.ssl_cert_reqs)
        if options.ssl_ca_certs is not None:
            context.load_verify_locations(options.ssl_ca_certs)
    except (OSError, ValueError) as error:
        files = f"{options.ssl_keyfile}, {options.ssl_certfile}, {options.ssl_ca_certs}"
        raise EnginewrightError(f"TLS cannot be set up from {files}: {error}") from error


@contextlib.contextmanager
def unix_socket(place: str | None) -> Iterator[socket.socket | None]:
    """A socket bound there, which does not listen yet, and is removed at the end.

    Its mode is what the umask allows. One that a killed server left is replaced.
    """
    if place is None:
        yield None
        return
    _remove_stale(place)
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(place)
        except OSError as error:
            raise EnginewrightError(f"uds={place}: cannot listen there ({error})") from error
        try:
            yield made
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)


def _remove_stale(place: str) -> None:
    """Make room, unless what is there is something else, or somebody listens."""
    try:
        kind = os.stat(place).st_mode
    except OSError:
        return  # binding tells what is wrong, if anything is
    if not stat.S_ISSOCK(kind):
        raise EnginewrightError(f"uds={place}: there is something else than a socket")
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(place)
        except ConnectionRefusedError:
            os.unlink(place)
            return
        except OSError as error:
            raise EnginewrightError(f"uds={place}: cannot listen there ({error})") from error
    raise EnginewrightError(f"uds={place}: another server listens there")
