"""The settings by which an operator says who may do what, and looks after a running server."""

from __future__ import annotations

from typing import Final

from ntcpsock._servers.option import Option

#: Of brokers.
POLICY_OPTIONS: Final = (
    Option(
        "names",
        "who gets a name: open (first come), token (who shows one of --token), list (those of --reserve alone)",
        metavar="POLICY",
        default="open",
    ),
    Option("reserve", "a name that is for one node alone; may be repeated", "list", "NAME=NODE_ID"),
    Option(
        "private",
        "serve known nodes only: those of --admit and --reserve, and who shows one of --token",
        "switch",
        default=False,
    ),
    Option("admit", "a node that needs no token; may be repeated", "list", "NODE_ID"),
    Option(
        "token",
        "what nodes set as broker_token, 8 characters or more; may be repeated. The file keeps it from `ps`",
        "list",
        "TEXT",
    ),
    Option("registrations_of_a_node", "registrations a second of one node", "number", "RATE"),
    Option("registrations_of_an_address", "of one address, or IPv6 /64", "number", "RATE"),
    Option("introductions_of_a_node", "introductions a second that one node may ask for", "number", "RATE"),
    Option("introductions_of_an_address", "of one address, or IPv6 /64", "number", "RATE"),
    Option(
        "relay_node",
        "a relay that may register here without our relay.key, by its node id; may be repeated",
        "list",
        "NODE_ID",
    ),
)
#: Of relays.
RELAY_OPTIONS: Final = (
    Option(
        "sessions_of_an_address",
        "of the connections, from one address, or IPv6 /64 (default: any)",
        "integer",
    ),
    Option("rate_of_an_address", "bytes per second of one address (default: any)", "number", "BYTES"),
)
#: Of a relay alone.
REGISTER_OPTIONS: Final = (
    Option(
        "broker",
        "a broker to register at, as ntcp://HOST:PORT?key=KEY, which then tells nodes of this relay, and of its load; "
        "may be repeated",
        "list",
        "BROKER",
    ),
    Option(
        "public",
        "where nodes reach this relay: HOST:PORT, or wss://HOST:PORT in TLS (default: our port at the address that the "
        "broker sees)",
        metavar="PLACE",
    ),
    Option(
        "identity",
        "this relay's own key, for a broker that lists it as --relay-node and does not share its relay.key",
        "path",
        "FILE",
    ),
)
#: Of brokers and relays.
BAN_OPTIONS: Final = (
    Option("ban", "a node id, an address or a network that is not served; may be repeated", "list", "WHO"),
)
#: Of all.
ADMIN_OPTIONS: Final = (
    Option(
        "socket",
        "where `ntcp admin` finds this server (default: admin-PROGRAM.sock in the state directory)",
        "path",
        "PATH",
    ),
    Option(
        "log_level",
        "debug, info, warning or error (default: warning, and info with --log json)",
        metavar="LEVEL",
    ),
)

#: Read again at SIGHUP; all else needs a restart.
RELOADABLE: Final = frozenset(
    {
        *(option.name for option in (*POLICY_OPTIONS, *RELAY_OPTIONS, *BAN_OPTIONS)),
        "log",
        "log_level",
        "sessions",
        "sessions_of_a_node",
        "rate",
        # By their contents.
        "certificate",
        "key",
    }
)
