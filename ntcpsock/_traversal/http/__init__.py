"""The little of HTTP/1.1 that leads out of networks and into relays."""
