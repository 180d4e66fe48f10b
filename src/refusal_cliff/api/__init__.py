"""The method in Python: what `import refusal_cliff` offers, one function a step."""
