"""Who is at the other end of a connection, where proxies stand between: PROXY protocol, Forwarded, X-Forwarded-*.

Only what a trusted proxy says is believed. Everybody else's connection is from where it comes from.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from relay.observe import log
from relay.transport.ports import Caller

_log = log.get("opamp-relay.peers")
V1 = b"PROXY "
V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_PORT = re.compile(r"[0-9]{1,5}")
_V1_MOST_BYTES = 107
_V2_HEAD_BYTES = 16
_V2_MOST_BYTES = 4096
"""With all its TLVs; those that are known take some hundred bytes."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")

Address = tuple[str, int | None]
"""(IP, port or None where nobody knows)."""
Hops = list[dict[str, str]]
"""What proxies said, the nearest to us last; each as the parameters of a Forwarded element."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The other end of a request."""

    address: Address
    scheme: str
    """By which it reached us: http or https."""
    host: str
    """By which it reached us, with the port if it named one; empty where nobody knows."""

    @property
    def remote(self) -> str:
        """`IP:PORT`, or `IP`; empty where it is gone already."""
        ip, port = self.address
        if port is None:
            return ip
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    @property
    def base_url(self) -> str:
        """`http://HOST:PORT` as the other end reached us; empty where nobody knows."""
        return f"{self.scheme}://{self.host}" if self.host else ""

    @property
    def caller(self) -> Caller:
        """What agents' messages are taken with."""
        return Caller(self.remote, self.base_url)


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a PROXY header says."""

    length: int
    """In bytes; what follows is the connection's own."""
    source: Address | None
    """None: the proxy speaks for itself (a health check)."""


class TrustedProxies:
    """The proxies that are believed.

    Args:
        networks: as CIDR.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in networks]
        self._contradicted = False
        self.unbelieved = ""
        """IP of who first said for whom it speaks, and is not trusted; empty for nobody."""

    def trusts(self, ip: str) -> bool:
        """Whether what this address says of others is believed."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any(address in network or (mapped is not None and mapped in network) for network in self._networks)

    def peer(self, address: Address, headers: Mapping[str, str], *, scheme: str) -> Origin:
        """The other end of a request.

        Args:
            address: from which the connection comes, or which its PROXY header names.
            headers: lower-case names.
            scheme: of the connection itself.
        """
        host = headers.get("host", "")
        hops: Hops = []
        if any(name in headers for name in _FORWARDING):
            if self.trusts(address[0]):
                hops = self._agreed(_forwarded(headers), _x_forwarded(headers), address)
            elif not self.unbelieved:
                self.unbelieved = address[0]
                _log.warning(
                    "forwarding_not_believed", remote_addr=address[0], consequence="it is not in trusted_proxies"
                )
        nearest = hops[-1] if hops else {}
        for hop in reversed(hops):
            if not self.trusts(address[0]) or (said := _address(hop.get("for", ""))) is None:
                break
            address, nearest = said, hop
        scheme = nearest.get("proto", scheme).lower()
        host = nearest.get("host", host)
        return Origin(
            address,
            scheme if scheme in ("http", "https") else "http",
            host if _HOST.fullmatch(host) is not None else "",
        )

    def _agreed(self, standard: Hops, usual: Hops, address: Address) -> Hops:
        """What a proxy said, in one way or in both; nothing where they contradict each other.

        Most proxies write one of the two and pass on what the agent wrote as the other.
        """
        if not standard or not usual or _said(standard) == _said(usual):
            return standard or usual
        if not self._contradicted:
            self._contradicted = True
            _log.warning(
                "forwarding_contradicts_itself",
                remote_addr=address[0],
                consequence="Forwarded and X-Forwarded-* contradict each other: neither is used; remove one at the proxy",
            )
        return []


def address_of(transport: asyncio.BaseTransport | None) -> Address:
    """Where a connection comes from; an empty IP where it is gone already."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return (str(peer[0]), int(peer[1])) if peer else ("", None)


def scheme_of(transport: asyncio.BaseTransport | None) -> str:
    """The scheme of a connection."""
    has_tls = transport is not None and transport.get_extra_info("ssl_object") is not None
    return "https" if has_tls else "http"


def proxy_header(data: bytes) -> ProxyHeader | bool | None:
    """Read a PROXY header (haproxy, proxy-protocol.txt) from the start of a connection.

    Returns:
        The header; None where more bytes are needed to tell; False where there is none.

    Raises:
        ValueError: it begins as one and is none.
    """
    if data.startswith(V1):
        return _v1(data)
    if data.startswith(V2):
        return _v2(data)
    return None if V1.startswith(data) or V2.startswith(data) else False


def _v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_MOST_BYTES)
    if end < 0:
        if len(data) >= _V1_MOST_BYTES:
            raise ValueError("a PROXY line is too long")
        return None
    words = data[:end].decode("ascii", "replace").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return ProxyHeader(end + 2, None)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6") or not _PORT.fullmatch(words[4]):
        raise ValueError("a PROXY line is malformed")
    return ProxyHeader(end + 2, (str(ipaddress.ip_address(words[2])), int(words[4])))


def _v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD_BYTES:
        return None
    command, family, size = struct.unpack_from(">BBH", data, len(V2))
    length = _V2_HEAD_BYTES + size
    if command not in (0x20, 0x21) or length > _V2_MOST_BYTES:
        raise ValueError("a PROXY header has an unknown version or size")
    if len(data) < length:
        return None
    if command == 0x20 or family not in (0x11, 0x21):
        return ProxyHeader(length, None)
    width = 4 if family == 0x11 else 16
    if size < 2 * width + 4:
        raise ValueError("a PROXY header is too short")
    source = data[_V2_HEAD_BYTES : _V2_HEAD_BYTES + width]
    (port,) = struct.unpack_from(">H", data, _V2_HEAD_BYTES + 2 * width)
    return ProxyHeader(length, (str(ipaddress.ip_address(source)), port))


def _forwarded(headers: Mapping[str, str]) -> Hops:
    """What proxies said by Forwarded (RFC 7239)."""
    return [_element(text) for text in _split(headers["forwarded"], ",")] if "forwarded" in headers else []


def _x_forwarded(headers: Mapping[str, str]) -> Hops:
    """What proxies said by X-Forwarded-For, -Proto and -Host."""
    lists = {
        key: [item.strip() for item in headers[name].split(",")]
        for key, name in (("for", "x-forwarded-for"), ("proto", "x-forwarded-proto"), ("host", "x-forwarded-host"))
        if name in headers
    }
    if not lists:
        return []
    hops: Hops = [{"for": ip} for ip in lists.get("for", [])] or [{}]
    for key in ("proto", "host"):
        values = lists.get(key, [])
        for i, hop in enumerate(hops):
            if values:  # proxies replace these more often than they append
                hop[key] = values[i] if len(values) == len(hops) else values[-1]
    return hops


def _said(hops: Hops) -> list[tuple[Address | None, str, str]]:
    return [(_address(hop.get("for", "")), hop.get("proto", "").lower(), hop.get("host", "")) for hop in hops]


def _element(text: str) -> dict[str, str]:
    found = {}
    for pair in _split(text, ";"):
        name, _, value = pair.partition("=")
        found[name.strip().lower()] = value.strip().strip('"')
    return found


def _split(text: str, separator: str) -> list[str]:
    """Split where the separator is not inside quotes."""
    parts, quoted = [""], False
    for char in text:
        quoted ^= char == '"'
        if char == separator and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _address(text: str) -> Address | None:
    """`IP`, `IP:PORT`, `[V6]:PORT`; None for anything else (`unknown`, `_hidden`)."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ip = str(ipaddress.ip_address(host))
    except ValueError:
        return None
    return ip, int(port) if _PORT.fullmatch(port) else None
