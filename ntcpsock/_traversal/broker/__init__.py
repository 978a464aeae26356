"""Signalling: the frame, the messages, and a node's session with its broker."""
