"""What kind of NAT is between us and the world: RFC 5780 over UDP, and the like of it over TCP.

`evidence.py` has the questions and their outcomes, `machine.py` says which question comes when, `driver.py` asks,
`findings.py` concludes, `prospects.py` says what follows for users; `lifetime.py` is about how long a mapping lives.
"""
