"""CPython's own socket tests, unmodified, run with `socket.socket = NTCPSocket`.

Each test module runs in three ways, each in a process of its own, and what counts is the outcome of each test:

* *baseline*: without ntcpsock, to know what this machine makes of the test;
* *plain*: under `ntcpsock.install()`, with the tests' ordinary addresses;
* *named*: under `install()`, where the tests' "localhost" is a name of a node, so that each stream
  connection crosses the engine, the broker, the race, TLS and the pump.

`known_differences.toml` lists what differs from the baseline, and why; whatever it lists must differ.
`python -m tests.conformance.compare` prints the counts.
"""
