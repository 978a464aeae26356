"""NAT lab and pytest plugin, for users too."""
