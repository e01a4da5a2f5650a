"""Keeps a process from connecting to other machines.

Imports no other package, because tests/offline runs it at the start of every Python process.
"""

import os
import sys

OWN = {'', 'localhost', '0.0.0.0', '::', '::1', os.uname().nodename if hasattr(os, 'uname') else 'localhost'}
# The events of Python's audit hooks, and which of their arguments is the address or the name of a host.
EVENTS = {
    'socket.connect': 1,
    'socket.sendto': 1,
    'socket.sendmsg': 1,
    'socket.getaddrinfo': 0,
    'socket.gethostbyname': 0,
    'socket.gethostbyaddr': 0,
}


def remote_host(event: str, arguments: tuple) -> str | None:
    """The name or address of the other machine that an audit event is about; ``None`` if there is none."""
    if event not in EVENTS:
        return None
    host = arguments[EVENTS[event]]
    if EVENTS[event] == 1:  # an address: a tuple, or the path of a Unix socket
        host = host[0] if isinstance(host, tuple) else None
    if isinstance(host, bytes):
        host = host.decode(errors='replace')
    if not isinstance(host, str) or host in OWN or host.startswith(('127.', '::ffff:127.')):
        return None
    return host


def stay_local() -> None:
    """From now on a connection to another machine raises ``PermissionError``. This cannot be undone."""

    def refuse(event: str, arguments: tuple) -> None:
        if host := remote_host(event, arguments):
            raise PermissionError(f'this process stays on its computer; {event} was called for {host}')

    sys.addaudithook(refuse)
