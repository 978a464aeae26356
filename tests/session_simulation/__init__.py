"""Two ends of a session on a simulated network, with virtual time and seeded faults.

Run one schedule again with `python -m session_simulation SEED`.
"""
