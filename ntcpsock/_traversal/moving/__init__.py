"""Streams that outlive their path: a carrier that is lost, or is not the best, is replaced by one of a new dial."""
