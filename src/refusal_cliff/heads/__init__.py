"""Refusal suppression heads: found, proven, taken out."""
