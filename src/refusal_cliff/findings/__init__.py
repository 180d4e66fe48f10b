"""What a run has found: as data, and in words."""
