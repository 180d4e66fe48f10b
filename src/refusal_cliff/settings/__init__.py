"""What a user can set: one declaration of each setting, without anything heavy to import.

From a class here come the arguments of the Python functions, the options of the commands with
their help (`commands.grouped`), the file of ``--config`` and what a run folder says of itself. A
default is therefore the same object everywhere.
"""

from refusal_cliff.settings.model import (
    DTYPES,
    PLAIN,
    Chat,
    GenerationConfig,
    Loading,
    Writing,
    setting,
)
from refusal_cliff.settings.work import (
    BY_RULES,
    DEFAULT_POOL,
    JUDGES,
    KNOWS_HARM,
    LABELS,
    POOLS,
    STRATEGIES,
    Engine,
    JudgeSettings,
    Method,
    RepairConfig,
    RowSettings,
    Selecting,
    Server,
    Strategy,
)

__all__ = [
    "BY_RULES",
    "DEFAULT_POOL",
    "DTYPES",
    "JUDGES",
    "KNOWS_HARM",
    "LABELS",
    "PLAIN",
    "POOLS",
    "STRATEGIES",
    "Chat",
    "Engine",
    "GenerationConfig",
    "JudgeSettings",
    "Loading",
    "Method",
    "RepairConfig",
    "RowSettings",
    "Selecting",
    "Server",
    "Strategy",
    "Writing",
    "setting",
]
