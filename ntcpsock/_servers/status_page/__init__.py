"""The page at `/`: a server's numbers, live, for its operator's browser."""
