"""Benchmarks: `python -m benchmarks [connect_time|throughput|pingpong]...`."""
