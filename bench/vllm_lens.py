"""vllm-lens as the engine of `trace`: the same scores, and what they cost to carry.

vllm-lens (UK AI Security Institute) gives the residual stream of a served model. This asks such a
server for the states of a run's traces, scores them with the run's probes, and compares with the
scores of the model here:

    python -m bench.vllm_lens RUN/KEY --model M --endpoint http://127.0.0.1:8123 --endpoint-model M

The server is started as in docs/howto/vllm.md, with vllm-lens beside vLLM (on Python 3.11 install
it with `--no-deps --ignore-requires-python`) and with `--no-enable-prefix-caching`.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path

import httpx2
import numpy as np
import zstandard
from numpy.typing import NDArray

from refusal_cliff.cliff.scores import score_traces
from refusal_cliff.data.traces import closed, read_traces
from refusal_cliff.model.subject import load_subject
from refusal_cliff.probe.files import read_probes


def states(
    url: str, model: str, ids: tuple[int, ...], layers: list[int]
) -> tuple[NDArray[np.float32], int]:
    """Residual stream after blocks (from 1), [layers, tokens, width], and the bytes it came in."""
    xargs = {"output_residual_stream": json.dumps([layer - 1 for layer in layers])}
    body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
    said = httpx2.post(f"{url}/v1/completions", json={**body, "vllm_xargs": xargs}, timeout=600)
    told = said.raise_for_status().json()["activations"]["residual_stream"]
    raw = zstandard.ZstdDecompressor().decompress(base64.b64decode(told["data"]))
    if told["original_dtype"] != "torch.float32":
        raise SystemExit(f"serve in float32: the states came as {told['original_dtype']}")
    return np.frombuffer(raw, np.float32).reshape(told["shape"])[:, : len(ids)], len(said.content)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a model within a finished audit")
    parser.add_argument("--model", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--endpoint-model", required=True)
    parser.add_argument("--n", type=int, default=8, help="traces")
    args = parser.parse_args()

    subject = load_subject(args.model, device="cpu")
    probes = read_probes(args.run / "probes.safetensors", args.run / "probes.json", subject)
    traces = closed(read_traces(args.run / "traces-test.parquet"))[: args.n]
    begun = time.process_time()
    here = score_traces(subject, traces, probes)
    own = time.process_time() - begun
    layers = [probe.layer for probe in probes.probes]
    weights = np.stack([probe.weight for probe in probes.probes])
    bias = np.array([probe.bias for probe in probes.probes])
    worst, carried, begun = 0.0, 0, time.perf_counter()
    for trace, scores in zip(traces, here, strict=True):
        read, size = states(args.endpoint, args.endpoint_model, trace.token_ids, layers)
        logits = np.einsum("ltd,ld->lt", read, weights) + bias[:, None]
        worst = max(worst, float(np.abs(logits - scores.logits).max()))
        carried += size
    tokens = sum(len(trace.token_ids) for trace in traces)
    kept = sum(scores.logits.nbytes for scores in here)
    print(
        f"{len(traces)} traces, {tokens} tokens, {len(layers)} layers of width {weights.shape[1]}"
    )
    print(f"largest difference of a logit: {worst:.2g}")
    print(f"bytes a token: {carried / tokens:,.0f} carried, {kept / tokens:,.0f} of scores")
    print(f"seconds: {time.perf_counter() - begun:.1f} by the server (clock), {own:.1f} here (CPU)")


if __name__ == "__main__":
    main()
