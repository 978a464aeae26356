"""TURN (RFC 8656), the client: a public address at somebody's server, for pairs that meet no other way."""
