"""Finds the client behind proxies: PROXY protocol, Forwarded, X-Forwarded-*.

Only trusted proxies are believed. For anybody else, the client is the connection's own peer.
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
_V1_MAX_BYTES = 107
_V2_HEAD_BYTES = 16
_V2_MAX_BYTES = 4096
"""TLVs included. The known ones take a few hundred bytes."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_FORWARDING = ("forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")

Address = tuple[str, int | None]
"""(IP, port or None if unknown)."""
Hops = list[dict[str, str]]
"""What each proxy said, as the parameters of a Forwarded element; the nearest proxy last."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The client that sent a request."""

    address: Address
    scheme: str
    """How the client reached us: http or https."""
    host: str
    """The host that the client asked for, with the port if it gave one; empty if unknown."""

    @property
    def remote(self) -> str:
        """`IP:PORT` or `IP`; empty if the client has disconnected."""
        ip, port = self.address
        if port is None:
            return ip
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    @property
    def base_url(self) -> str:
        """The URL under which the client reached us, such as `http://HOST:PORT`; empty if unknown."""
        return f"{self.scheme}://{self.host}" if self.host else ""

    @property
    def caller(self) -> Caller:
        """The client, as `Agents.receive` takes it."""
        return Caller(self.remote, self.base_url)


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A parsed PROXY header."""

    length: int
    """In bytes. The client's own data follows."""
    source: Address | None
    """None if the proxy speaks for itself, as in a health check."""


class TrustedProxies:
    """The proxies whose statements about clients are believed.

    Args:
        networks: in CIDR notation.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in networks]
        self._contradicted = False
        self.first_untrusted = ""
        """IP of the first untrusted peer that sent forwarding headers; empty if none did."""

    def trusts(self, ip: str) -> bool:
        """Whether this address belongs to a trusted proxy."""
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any(address in network or (mapped is not None and mapped in network) for network in self._networks)

    def peer(self, address: Address, headers: Mapping[str, str], *, scheme: str) -> Origin:
        """The client that sent a request.

        Args:
            address: where the connection comes from, or the source in its PROXY header.
            headers: names in lower case.
            scheme: the connection's own scheme.
        """
        host = headers.get("host", "")
        hops: Hops = []
        if any(name in headers for name in _FORWARDING):
            if self.trusts(address[0]):
                hops = self._agreed(_forwarded(headers), _x_forwarded(headers), address)
            elif not self.first_untrusted:
                self.first_untrusted = address[0]
                _log.warning(
                    "forwarding_not_believed",
                    remote_addr=address[0],
                    consequence="its headers are ignored; it is not in trusted_proxies",
                )
        nearest = hops[-1] if hops else {}
        for hop in reversed(hops):
            if not self.trusts(address[0]) or (previous := _address(hop.get("for", ""))) is None:
                break
            address, nearest = previous, hop
        scheme = nearest.get("proto", scheme).lower()
        host = nearest.get("host", host)
        return Origin(
            address,
            scheme if scheme in ("http", "https") else "http",
            host if _HOST.fullmatch(host) is not None else "",
        )

    def _agreed(self, forwarded: Hops, x_forwarded: Hops, address: Address) -> Hops:
        """The hops from either kind of header; empty if the two kinds contradict each other.

        Most proxies write one kind and pass on whatever the agent sent as the other.
        """
        if not forwarded or not x_forwarded or _normalised(forwarded) == _normalised(x_forwarded):
            return forwarded or x_forwarded
        if not self._contradicted:
            self._contradicted = True
            _log.warning(
                "forwarding_contradicts_itself",
                remote_addr=address[0],
                consequence="Forwarded and X-Forwarded-* contradict each other and are ignored; remove one at the proxy",
            )
        return []


def address_of(transport: asyncio.BaseTransport | None) -> Address:
    """The address that a connection comes from; the IP is empty if the connection is closed."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return (str(peer[0]), int(peer[1])) if peer else ("", None)


def certificate_of(transport: asyncio.BaseTransport | None) -> bytes | None:
    """The client's certificate, DER, whose chain TLS has verified; None if there is none."""
    tls = transport.get_extra_info("ssl_object") if transport is not None else None
    certificate: bytes | None = tls.getpeercert(binary_form=True) if tls is not None else None
    return certificate or None


def scheme_of(transport: asyncio.BaseTransport | None) -> str:
    """`https` if the connection uses TLS, else `http`."""
    has_tls = transport is not None and transport.get_extra_info("ssl_object") is not None
    return "https" if has_tls else "http"


def proxy_header(data: bytes) -> ProxyHeader | bool | None:
    """Parse a PROXY header (HAProxy, proxy-protocol.txt) at the start of a connection.

    Returns:
        The header; None if more bytes are needed; False if there is none.

    Raises:
        ValueError: the header is malformed.
    """
    if data.startswith(V1):
        return _v1(data)
    if data.startswith(V2):
        return _v2(data)
    return None if V1.startswith(data) or V2.startswith(data) else False


def _v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_MAX_BYTES)
    if end < 0:
        if len(data) >= _V1_MAX_BYTES:
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
    if command not in (0x20, 0x21) or length > _V2_MAX_BYTES:
        raise ValueError("a PROXY header has an unknown version or command, or is too long")
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
    """The hops in Forwarded (RFC 7239)."""
    return [_element(text) for text in _split(headers["forwarded"], ",")] if "forwarded" in headers else []


def _x_forwarded(headers: Mapping[str, str]) -> Hops:
    """The hops in X-Forwarded-For, -Proto and -Host."""
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
            if values:  # proxies replace these headers more often than they append to them
                hop[key] = values[i] if len(values) == len(hops) else values[-1]
    return hops


def _normalised(hops: Hops) -> list[tuple[Address | None, str, str]]:
    return [(_address(hop.get("for", "")), hop.get("proto", "").lower(), hop.get("host", "")) for hop in hops]


def _element(text: str) -> dict[str, str]:
    parameters = {}
    for pair in _split(text, ";"):
        name, _, value = pair.partition("=")
        parameters[name.strip().lower()] = value.strip().strip('"')
    return parameters


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside quotes."""
    parts, quoted = [""], False
    for char in text:
        quoted ^= char == '"'
        if char == separator and not quoted:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _address(text: str) -> Address | None:
    """Parse `IP`, `IP:PORT` or `[V6]:PORT`; None for anything else, such as `unknown` and `_hidden`."""
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


def joined(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers in the form of `Head.headers`."""
    joined: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined
