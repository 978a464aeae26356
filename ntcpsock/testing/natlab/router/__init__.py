"""A NAT as a pure machine: packets and the time in, packets out; every combination of RFC 4787 and 5382 words."""
