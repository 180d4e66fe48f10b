"""Cliff-as-a-Judge: the few examples worth training on."""
