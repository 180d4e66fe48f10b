"""The stages of one subject: generate → judge → probe → trace → cliff → heads → ablate."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refusal_cliff.capture import PositionResiduals, capture
from refusal_cliff.evaluate import benign_perplexity, evaluate
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.heads import measure_heads, read_heads, select_heads, write_heads
from refusal_cliff.io import read_json, write_json
from refusal_cliff.judges import judge_all
from refusal_cliff.models import Head, Subject
from refusal_cliff.pipeline import Job, Progress, Stage
from refusal_cliff.probe import ProbeSet, choose_layer, fit_probes
from refusal_cliff.run_folder import Headline
from refusal_cliff.scores import score_traces, write_scores
from refusal_cliff.traces import Prompt, Trace, read_prompts, read_traces, write_traces

FIT_PROMPTS, TEST_PROMPTS = "prompts/fit.jsonl", "prompts/test.jsonl"
MIN_REFUSED = 10
