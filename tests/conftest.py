"""What holds for every test: no network, one thread a process, the longest files first."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before all else
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start, too

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")  # the same inputs in every run: new ones are drawn by `make slow`

LONGEST = (
    "test_demo",
    "test_api",
    "test_recipe_findings",
    "test_any_judge",
    "test_less_is_more",
    "test_kept_answers",
    "test_endpoint",
    "test_fooling",
    "test_engine_ray",
    "test_proof",
    "test_audit",
    "test_pretrained",
    "test_smollm2",
)
"""Files that take a minute or so. Each runs on one worker (``--dist loadfile``), so that they come
first: one of them begun last would keep a single worker busy while the others are idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; all others keep their order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
