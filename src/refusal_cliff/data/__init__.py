"""What is read and kept: prompts, traces, training examples."""
