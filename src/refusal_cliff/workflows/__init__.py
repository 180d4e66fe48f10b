"""Whole jobs, from inputs to a report or a checkpoint: demo, audit, repair, experiments."""
