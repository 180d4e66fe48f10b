"""The commands: they parse, call one function and show what it returns; no logic lives here.

Whatever needs torch or transformers is imported inside a command, so that ``--help`` is instant.
"""
