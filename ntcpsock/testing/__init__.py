"""For tests: a NAT lab in network namespaces (`ntcpsock.testing.natlab`), and a pytest plugin lending it."""
