"""What a model says, judged and counted."""
