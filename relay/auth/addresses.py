"""Which addresses may connect, and under which names we may be called."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


_PORT = re.compile(r":[0-9]*$")
_OWN_HOSTS = frozenset({"", "localhost", "127.0.0.1", "[::1]"})
"""No browser leaves it out."""


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine. A page of another site has that site's name there (DNS rebinding)."""
    return _PORT.sub("", host).lower() in _OWN_HOSTS


class AddressRules:
    """Networks that are allowed, and networks that are denied; deny wins.

    Args:
        allow: CIDRs; empty allows all.
        deny: CIDRs.

    Raises:
        ValueError: one is not a CIDR.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = [_network(text) for text in allow]
        self._deny = [_network(text) for text in deny]

    def admits(self, ip: str) -> bool:
        """Whether an address may connect. One that cannot be read may not, where there are rules."""
        if not self._allow and not self._deny:
            return True
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:  # addresses are compared as IPv4
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network
