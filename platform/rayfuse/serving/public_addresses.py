"""Public IP addresses: all that no special purpose is assigned to.

The blocks are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries, including those that are globally
reachable, such as anycast relays: no files are served there. Python's `ipaddress.is_global` depends on the version of
Python, and allows some of them (CVE-2024-4032).
"""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_RESERVED_IPV4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared by carriers; metadata of Alibaba Cloud
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # not in the registry: virtual address of Azure's platform, in every machine there
    "169.254.0.0/16",  # link-local; metadata of most clouds
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments; metadata of Oracle Cloud
    "192.0.2.0/24",  # documentation
    "192.31.196.0/24",  # AS112
    "192.52.193.0/24",  # multicast tunnels
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "192.175.48.0/24",  # AS112
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
)
_GLOBAL_UNICAST_IPV6 = "2000::/3"
"""The only IPv6 block of which public addresses are assigned. Outside: loopback, local and link-local addresses,
multicast, and IPv4-compatible, IPv4-translated and local NAT64 addresses, which embed an IPv4 address."""
_RESERVED_IPV6 = (
    "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, AS112, benchmarks
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4
    "2620:4f:8000::/48",  # AS112
    "3fff::/20",  # documentation
)
_NAT64 = "64:ff9b::/96"
_ISATAP_INTERFACES = (0x0000_5EFE, 0x0200_5EFE)
"""First half of an interface identifier whose second half is an IPv4 address (RFC 5214)."""


def _parse(blocks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, blocks))


_RESERVED = _parse(_RESERVED_IPV4 + _RESERVED_IPV6)
_GLOBAL_UNICAST, _NAT64_NETWORK = _parse((_GLOBAL_UNICAST_IPV6, _NAT64))


def is_public(address: Address) -> bool:
    """Return whether an address is public.

    IPv4-mapped addresses, and those of NAT64, are judged by the IPv4 address that they embed. All other forms that
    embed one are not public.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address in _NAT64_NETWORK:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        if address not in _GLOBAL_UNICAST or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_INTERFACES:
            return False
    return not any(address in block for block in _RESERVED)
