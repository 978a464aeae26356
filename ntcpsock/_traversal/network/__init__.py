"""This machine's addresses and ways out, and whether they have changed."""
