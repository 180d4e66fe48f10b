"""The steps of the method as stages of a run: measure, intervene, mend."""
