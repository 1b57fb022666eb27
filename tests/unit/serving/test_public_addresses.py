"""Public addresses: none of IANA's special-purpose blocks, in whatever form an address is written."""

import ipaddress

import pytest

from rayfuse.serving.public_addresses import is_public

SPECIAL_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.0.0.170/31",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.88.99.2/32",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
]
SPECIAL_IPV6 = [
    "::1/128",
    "::/128",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001::/32",
    "2001:1::1/128",
    "2001:1::2/128",
    "2001:1::3/128",
    "2001:2::/48",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:30::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
CLOUD_METADATA = ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"]
EMBEDDED_IPV4 = {
    "IPv4-mapped": "::ffff:{}",
    "IPv4-translated": "::ffff:0:{}",
    "IPv4-compatible": "::{}",
    "NAT64": "64:ff9b::{}",
    "local NAT64": "64:ff9b:1::{}",
    "ISATAP": "2606:4700::5efe:{}",
    "ISATAP, universal": "2606:4700::200:5efe:{}",
}


@pytest.mark.parametrize("block", SPECIAL_IPV4 + SPECIAL_IPV6)
def test_no_address_of_a_special_block_is_public(block: str) -> None:
    network = ipaddress.ip_network(block)
    middle = network[network.num_addresses // 2]
    assert not any(map(is_public, (network[0], middle, network[-1])))


@pytest.mark.parametrize("address", CLOUD_METADATA)
def test_metadata_services_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("form", EMBEDDED_IPV4.values(), ids=EMBEDDED_IPV4)
@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "192.0.0.192"])
def test_addresses_that_embed_a_private_one_are_not_public(form: str, inner: str) -> None:
    assert not is_public(ipaddress.ip_address(form.format(inner)))


@pytest.mark.parametrize("address", ["2002:7f00:1::", "2002:808:808::", "2001:0:808:808::1"])
def test_addresses_of_6to4_and_teredo_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "2606:4700::1111", "2a00:1450:4001::5e", "2001:4860:4860::8888"]
)  # fmt: skip
def test_other_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_mapped_and_nat64_addresses_are_judged_by_the_inner_one(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
