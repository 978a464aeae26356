"""What `ntcp admin` and a running server say to each other, over a Unix socket of the operator's."""
