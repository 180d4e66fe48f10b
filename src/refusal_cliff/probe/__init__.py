"""Linear probes that read the intention to refuse."""
