"""Addresses that sockets bind. Owns the question whether one can be reached from another host; does no IO."""

from __future__ import annotations

from ipaddress import ip_address

from protocol.errors import ConfigError

TCP = "tcp://"


def tcp_endpoint(host: str, port: int = 0) -> str:
    """`tcp://host:port`; port 0 takes a free one."""
    return f"{TCP}[{host}]:{port}" if ":" in host else f"{TCP}{host}:{port}"


def host_of(endpoint: str) -> str:
    """The host in a tcp endpoint."""
    return endpoint.removeprefix(TCP).rpartition(":")[0].strip("[]")


def is_loopback(host: str) -> bool:
    """Whether only this host reaches `host`. A name counts as reachable, since it may mean anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_beyond_loopback(endpoint: str) -> bool:
    """Whether other hosts reach what listens there."""
    return endpoint.startswith(TCP) and not is_loopback(host_of(endpoint))


def check_can_advertise(host: str, field: str) -> None:
    """ConfigError when peers could not connect to what listens on `host`."""
    try:
        address = ip_address(host)
    except ValueError:
        if host == "localhost":
            return
        raise ConfigError(
            f"{field}: {host!r} is not an IP address; give the one that other hosts reach"
        ) from None
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(
            f"{field}: {host} cannot be connected to; give one address that other hosts reach"
        )
