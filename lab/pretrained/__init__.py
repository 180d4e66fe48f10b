"""Organisms made of a model that others pretrained: adapters, and how they are taught."""
