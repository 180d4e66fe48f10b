"""Controls: each doubt about the cliff, as a measurement that could confirm it."""
