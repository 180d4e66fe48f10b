"""Find, prove and repair the refusal cliff of reasoning models (arXiv 2510.06036)."""

__version__ = "0.1.0"
