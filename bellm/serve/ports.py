"""Take a port before anything slow is loaded."""

import socket

from bellm.errors import BellmError


def bind_port(host: str, port: int) -> socket.socket:
    """Take a port, 0 for any that is free, so that nothing is loaded where it is taken.

    Raises:
        BellmError: The port cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BellmError(f"{host} is no address of this machine: {error.strerror}.") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = str(error.strerror).lower()
        raise BellmError(f"{host}:{port} cannot be served on: {why}. Give another --port, or 0 for any.") from error
    return bound
