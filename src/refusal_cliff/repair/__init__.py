"""Training on the chosen examples, and the proof that it helped."""
