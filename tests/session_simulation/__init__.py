"""Two ends of a session on a simulated network with virtual time and seeded faults. `python -m session_simulation SEED`."""
