"""The socket of the web page and the host names that its requests may contain."""

from __future__ import annotations

import ipaddress
import re
import socket

from mmfocalnet.errors import UserError

PORTS = range(7860, 7960)


def listen(host: str, port: int | None = None) -> socket.socket:
    """Listen on an address.

    Args:
        host: IP address or name, such as `mmfocalnet.web.HOST`.
        port: Port. Defaults to None: the first free one from 7860 to 7959.

    Raises:
        UserError: If host or port is invalid or unavailable.
    """
    problem = None
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        for number in PORTS if port is None else [port]:
            try:
                return socket.create_server((host, number), family=family)
            except OSError as error:
                problem = error
    except (OSError, OverflowError, UnicodeError) as error:
        problem = error
    raise UserError(
        f'cannot listen on --host {host!r}, --port {port or "7860 and up"} ({problem}). Specify an '
        'address of this machine and a free port.'
    )


class AllowedHosts:
    """Accepted values of the Host header, as a protection against DNS rebinding.

    Another site could resolve its own name to this server; its scripts could then read the page.

    Args:
        host: IP address or name that the server listens on.

    Attributes:
        is_local: Whether only this machine can connect.
    """

    def __init__(self, host: str) -> None:
        self.is_local = host == 'localhost' or _is_loopback(host)
        name = socket.gethostname().lower()
        short = name.split('.')[0]
        others = (
            {'127.0.0.1', '::1'}
            if self.is_local
            else {name, socket.getfqdn().lower(), short, f'{short}.local'}
        )
        self.names = {'localhost', host.lower(), *others}

    def __contains__(self, netloc: str) -> bool:
        """Whether a Host header matches this server, with any port: SSH tunnels change it."""
        match = re.fullmatch(r'(?:\[([\da-f:.]+)\]|([\w.-]+))(?::\d{1,5})?', netloc.lower())
        if not match:
            return False
        name = match[1] or match[2]
        # Rebinding requires a name; a machine may have several addresses.
        return name in self.names or (not self.is_local and _address(name) is not None)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback
