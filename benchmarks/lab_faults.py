"""What may happen to a lab of two hosts: for the soak and for single faults."""

from __future__ import annotations

from ntcpsock.testing.natlab import Host, Lab, Router


def new_address(host: Host, before: str, last: int) -> str:
    """Another lease of the same router: `last` in place of the last number of `before`; the address."""
    network = before.rpartition(".")[0]
    after = f"{network}.{last}"
    for command in (
        f"address add {after}/24 dev eth0",
        f"address del {before}/24 dev eth0",
        f"address replace {after}/24 dev eth0",
        f"route replace default via {network}.1",
    ):
        host.run(["ip", *command.split()], check=True)
    return after


def block(lab: Lab, rule: str) -> None:
    """Between the two networks, not towards the server. rule: of nftables, its verdict included."""
    sides: list[tuple[Host, Router]] = [(lab.host_a, lab.nat_b), (lab.host_b, lab.nat_a)]
    for host, router in sides:
        add_rule(host, f"ip daddr {router.public_address} {rule}")


def black_out(lab: Lab) -> None:
    """Nothing leaves either host."""
    for host in (lab.host_a, lab.host_b):
        add_rule(host, "oif != lo drop")


def add_rule(host: Host, rule: str) -> None:
    rules = (
        "add table ip fault; add chain ip fault out { type filter hook output priority 0; };"
        f" add rule ip fault out {rule}"
    )
    host.run(["nft", rules], check=True)


def unblock(lab: Lab) -> None:
    for host in (lab.host_a, lab.host_b):
        host.run(["nft", "delete table ip fault"], check=True)
