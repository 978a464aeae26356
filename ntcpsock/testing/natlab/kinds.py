"""What a lab router does: the words of a kind, and the nft rules that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

LAN = "lan0"
SECOND_LAN = "lan1"
"""A carrier's router has one for each of its customers."""
WAN = "wan0"

_LANS = f'{{ "{LAN}", "{SECOND_LAN}" }}'

# What only a local network routes: such a source or destination never crosses the public segment.
PRIVATE_NETWORKS = (
    "10.0.0.0/8",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
)


class Translation(Enum):
    """How an outgoing flow gets its public source (RFC 4787 section 4.1, RFC 5382 section 4.1)."""

    PRESERVING = "default"
    """Masquerade: the port is kept wherever it is free, whatever the destination."""
    RANDOM = "random"
    """`masquerade random`: another port for each flow, so the mapping depends on address and port."""
    FULLY_RANDOM = "fully-random"
    """`masquerade fully-random`: the same from a better source of randomness."""
    FIREWALL = "firewall"
    """No translation: a public host behind a stateful firewall."""
    NONE = "none"
    """No translation and no filter: a public host."""


class Answer(Enum):
    """What a packet from outside that belongs to no flow gets (RFC 5382 section 4.3)."""

    DROP = "drop"
    """Silence."""
    REJECT = "reject"
    """An RST for TCP, port unreachable for the rest, sent by the filter: the way of OpenWrt."""
    ACCEPT = "accept"
    """The router's own kernel answers: an RST too, but conntrack now knows the flow, so an early UDP packet
    poisons the mapping that the inner host asks for next."""


@dataclass(frozen=True, slots=True)
class NatKind:
    """A kind of router: translation and answer. `str()` gives the text that `parse` takes."""

    translation: Translation = Translation.PRESERVING
    answer: Answer = Answer.DROP

    @classmethod
    def parse(cls, text: str | NatKind) -> NatKind:
        """The kind that a text names: `default`, `reject`, `random`, `random-reject`, `firewall`, `none`...

        A translation word (`default` when it is missing), then an answer word (`drop` when it is missing),
        joined by `-`. Raises ValueError for anything else.
        """
        if isinstance(text, NatKind):
            return text
        words, _, last = text.rpartition("-")
        for answer in Answer:
            if answer.value == text:
                return cls(Translation.PRESERVING, answer)
            if answer.value == last:
                return cls(_translation(words, text), answer)
        return cls(_translation(text, text), Answer.DROP)

    def __str__(self) -> str:
        if self.answer is Answer.DROP:
            return self.translation.value
        if self.translation is Translation.PRESERVING:
            return str(self.answer.value)
        return f"{self.translation.value}-{self.answer.value}"

    @property
    def translates(self) -> bool:
        """Whether there is a NAT: the host behind has a private address."""
        return self.translation not in (Translation.NONE, Translation.FIREWALL)

    def ruleset(self) -> str:
        """The nft script for the router's namespace; empty where it only forwards."""
        if self.translation is Translation.NONE:
            return ""
        # OpenWrt too drops what conntrack calls invalid in `forward`: such a packet would leave untranslated,
        # with the private source address.
        lines = [
            "table ip lab {",
            "  chain input {",
            f"    type filter hook input priority 0; policy {'accept' if self._answers_itself else 'drop'};",
            '    iifname "lo" accept',
            f"    iifname {_LANS} accept",
            "    ct state established,related accept",
            *self._answer_rules(),
            "  }",
            "  chain forward {",
            "    type filter hook forward priority 0; policy drop;",
            "    ct state invalid counter drop",
            f"    iifname {_LANS} accept",
            "    ct state established,related accept",
            *self._answer_rules(),
            "  }",
        ]
        if self.translates:
            lines += [
                "  chain postrouting {",
                "    type nat hook postrouting priority 100; policy accept;",
                f'    oifname "{WAN}" {_MASQUERADE[self.translation]}',
                "  }",
            ]
        return "\n".join([*lines, "}", ""])

    @property
    def _answers_itself(self) -> bool:
        return self.answer is Answer.ACCEPT

    def _answer_rules(self) -> list[str]:
        if self.answer is not Answer.REJECT:
            return []
        return [
            f'    iifname "{WAN}" meta l4proto tcp reject with tcp reset',
            f'    iifname "{WAN}" reject with icmp type port-unreachable',
        ]


def ipv6_ruleset(*, reject: bool) -> str:
    """The nft script of a router's stateful IPv6 firewall (RFC 6092), beside whatever it does with IPv4."""
    return "\n".join(
        [
            "table ip6 lab {",
            "  chain forward {",
            "    type filter hook forward priority 0; policy drop;",
            f"    iifname {_LANS} accept",
            "    ct state established,related accept",
            *(
                [f'    iifname "{WAN}" meta l4proto tcp reject with tcp reset', "    reject"]
                if reject
                else []
            ),
            "  }",
            "}",
            "",
        ]
    )


def public_ruleset() -> str:
    """The nft script of the public segment: a private source address does not get in, as in any provider's
    network. (Private destinations have blackhole routes.)"""
    return "\n".join(
        [
            "table ip lab {",
            "  chain forward {",
            "    type filter hook forward priority 0; policy accept;",
            f"    ip saddr {{ {', '.join(PRIVATE_NETWORKS)} }} counter drop",
            "  }",
            "}",
            "",
        ]
    )


_MASQUERADE = {
    Translation.PRESERVING: "masquerade",
    Translation.RANDOM: "masquerade random",
    Translation.FULLY_RANDOM: "masquerade fully-random",
}


def _translation(word: str, text: str) -> Translation:
    try:
        return Translation(word)
    except ValueError:
        words = ", ".join(translation.value for translation in Translation)
        raise ValueError(
            f"unknown kind of NAT {text!r}: one of {words}, alone or followed by -reject or -accept"
        ) from None
