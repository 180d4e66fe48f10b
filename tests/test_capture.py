"""What readers are given is what the model computes for each trace on its own, and no more runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_families import FAMILIES, LAYERS, WIDTH, family_subject, random_ids

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.capture import PositionResiduals, ProbeScores, capture
from refusal_cliff.model.memory import BatchLimit
from refusal_cliff.model.subject import Subject

IDS = [random_ids(n, seed) for seed, n in enumerate((7, 31, 1, 18, 31, 12))]
POSITIONS = [3, 30, 0, 9, 15, 11]
EVERY = list(range(1, LAYERS + 1))


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return family_subject(request.param)


def probes(layers: list[int]) -> dict[int, tuple[NDArray[np.float64], float]]:
    rng = np.random.default_rng(5)
    return {layer: (rng.normal(size=WIDTH), float(rng.normal())) for layer in layers}


def residuals(subject: Subject, layers: list[int], token_budget: int) -> NDArray[np.float32]:
    reader = PositionResiduals(POSITIONS, layers, WIDTH)
    capture(subject, IDS, [reader], limit=BatchLimit(token_budget))
    return reader.values


@torch.inference_mode()
def block_outputs(subject: Subject, ids: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """What each block returns for one trace, in float64, taken by hooks of our own."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Any) -> None:
        del module, inputs
        kept.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.module.register_forward_hook(keep) for block in subject.blocks]
    subject.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return [states.reshape(len(ids), WIDTH).double().numpy() for states in kept]


def final_norm(subject: Subject) -> torch.nn.Module:
    """The last norm of the decoder: Hugging Face's last hidden states are taken after it."""
    decoder: Any = subject.model.base_model
    return decoder.ln_f if hasattr(decoder, "ln_f") else decoder.norm


def hooks(subject: Subject) -> int:
    modules = list(subject.model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@torch.inference_mode()
def test_residuals_are_those_of_hugging_face(subject: Subject) -> None:
    values = torch.from_numpy(residuals(subject, EVERY, 80))
    for row, (ids, at) in enumerate(zip(IDS, POSITIONS, strict=True)):
        states = subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, at] for state in states[1:]])
        got = values[row].clone()
        got[-1] = final_norm(subject)(values[row, -1:])[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_layers_come_in_the_order_given(subject: Subject) -> None:
    rising = residuals(subject, EVERY, 80)
    np.testing.assert_array_equal(residuals(subject, [3, 1], 80), rising[:, [2, 0]])


def test_batching_and_padding_change_nothing(subject: Subject) -> None:
    alone = residuals(subject, EVERY, 1)
    for budget in (40, 10**9):
        np.testing.assert_allclose(residuals(subject, EVERY, budget), alone, rtol=1e-4, atol=1e-4)


def test_scores_are_the_probes_logits_of_every_token(subject: Subject) -> None:
    weights = probes([3, 1])
    reader = ProbeScores(weights, len(IDS))
    capture(subject, IDS, [reader], limit=BatchLimit(80))
    for ids, logits in zip(IDS, reader.logits, strict=True):
        states = block_outputs(subject, ids)
        expected = [states[n - 1] @ weights[n][0] + weights[n][1] for n in (1, 3)]
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_nothing_after_the_last_layer_asked_for_is_run(subject: Subject) -> None:
    ran: Counter[str] = Counter()
    watched = {f"block {block.layer}": block.module for block in subject.blocks}
    watched |= {"norm": final_norm(subject)}
    watched |= {"head": subject.model.lm_head}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.update([name]))
        for name, module in watched.items()
    ]
    readers = [ProbeScores(probes([1]), len(IDS)), PositionResiduals(POSITIONS, [2], WIDTH)]
    capture(subject, IDS, readers, limit=BatchLimit(40))
    batches = ran["block 1"]
    assert batches > 1
    assert ran == {"block 1": batches, "block 2": batches}
    ran.clear()
    capture(subject, IDS, [ProbeScores(probes(EVERY), len(IDS))])
    assert ran == {"block 1": 1, "block 2": 1, "block 3": 1}
    for handle in handles:
        handle.remove()


def test_no_hook_stays(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hooks(subject)
    reader = ProbeScores(probes(EVERY), len(IDS))
    capture(subject, IDS, [reader])
    assert hooks(subject) == before

    def fail(*_: object) -> None:
        raise RuntimeError("reader failed")

    monkeypatch.setattr(reader, "read_residual", fail)
    with pytest.raises(RuntimeError, match="reader failed"):
        capture(subject, IDS, [reader])
    assert hooks(subject) == before


def test_progress_ends_with_every_trace(subject: Subject) -> None:
    seen: list[tuple[int, int]] = []
    reader = ProbeScores(probes([1]), len(IDS))
    capture(subject, IDS, [reader], limit=BatchLimit(40), progress=lambda *done: seen.append(done))
    assert seen == [(1, 6), (2, 6), (4, 6), (6, 6)]


@pytest.mark.parametrize("token_budget", [1, 10**9])
def test_a_state_that_is_not_finite_is_named(token_budget: int) -> None:
    subject = family_subject("qwen3")
    with torch.no_grad():
        subject.model.get_parameter("model.embed_tokens.weight")[IDS[3][9]] = float("nan")
    assert [row for row, ids in enumerate(IDS) if IDS[3][9] in ids] == [3]
    reader = PositionResiduals(POSITIONS, [2], WIDTH)
    with pytest.raises(RefusalCliffError, match=r"Trace 4 .* not finite after block 2"):
        capture(subject, IDS, [reader], limit=BatchLimit(token_budget))
    assert hooks(subject) == 0
