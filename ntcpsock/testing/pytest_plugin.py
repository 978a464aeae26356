"""pytest fixtures of the NAT lab."""
