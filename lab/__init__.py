"""The laboratory: how the embedded organisms are made, and what the method finds in many of them.

It stands beside the package, is in no wheel, and imports it as any user does.
"""

from refusal_cliff.folders import DESCRIPTIONS

DESCRIPTIONS.update(
    {
        "lab train": "organism-train.json",
        "lab bench-heads": "bench-heads.json",
        "lab less-is-more": "manifest.json",
        "lab controls": "manifest.json",
    }
)
