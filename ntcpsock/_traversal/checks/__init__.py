"""Connectivity checks over UDP (RFC 8445) between two nodes that know each other by a sealed offer."""
