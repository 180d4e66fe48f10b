"""Where memory runs out, half as much is tried; the answers are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killable import whole_output
from tiny_chat import save_tiny, tiny_model, tiny_tokenizer

from refusal_cliff.answers.evaluate import log_likelihoods
from refusal_cliff.data.types import LeftOut, Prompt, Trace
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.generate import GenerationConfig, generate
from refusal_cliff.generate.backend import LocalBackend
from refusal_cliff.model.ablation import _HeadMeans, mean_outputs
from refusal_cliff.model.capture import PositionResiduals, capture
from refusal_cliff.model.memory import BatchLimit, ran_out_of_memory
from refusal_cliff.model.subject import Head, Subject, load_subject, subject_of

OWN_SIZE = Path("/proc/self/statm")
PROMPTS = [Prompt(f"p{row}", "a" * row + "?", "benign") for row in range(11)]
CONFIG = GenerationConfig(max_new_tokens=6, batch_size=8)
ON_CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_WINDOWS = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_subject(str(save_tiny(tmp_path_factory.mktemp("tiny"))), device="cpu")


@pytest.fixture
def small(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int, Exception], list[int]]]:
    """A memory that holds so many rows and no more; the rows of every try are noted."""
    tries: list[int] = []
    forward = subject.model.model.forward

    def make(most: int, error: Exception) -> list[int]:
        def run(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"]
            if ids.shape[1] > 1:
                tries.append(len(ids))
            if len(ids) > most:
                raise error
            return forward(*args, **kwargs)

        monkeypatch.setattr(subject.model.model, "forward", run)
        return tries

    yield make


def test_a_real_failure_of_this_machine_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58)
    assert ran_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [ON_CUDA, ON_CPU, ON_WINDOWS, MemoryError()])
def test_the_limit_is_halved_and_other_errors_are_raised(error: Exception) -> None:
    def fail(error: Exception) -> None:
        raise error

    limit = BatchLimit(100)
    assert limit.run(lambda: fail(error), used=12) is None
    assert limit.size == 6
    assert limit.run(lambda: fail(error), used=1) is None
    assert limit.size == 1
    assert limit.run(lambda: 7, used=1) == 7
    with pytest.raises(RuntimeError, match="shapes"):
        limit.run(lambda: fail(RuntimeError("shapes cannot be multiplied")), used=1)


@pytest.mark.parametrize("error", [ON_CUDA, ON_CPU])
def test_answers_are_those_of_a_larger_memory(
    subject: Subject, small: Any, error: Exception
) -> None:
    expected = generate(subject, PROMPTS, CONFIG)
    hooks = len(subject.projection(1)._forward_pre_hooks)
    tries = small(3, error)
    assert generate(subject, PROMPTS, CONFIG) == expected
    assert tries[:3] == [8, 4, 2]
    assert max(tries[2:]) == 2
    assert len(subject.projection(1)._forward_pre_hooks) == hooks


def really_short(folder: Path) -> None:
    """Ask where the process may not grow by more than 16 MiB."""
    import resource  # POSIX only

    subject = load_subject(str(folder), device="cpu")
    # The attention mask of rows of unlike length is one piece of more than 32 MiB, which the C
    # library takes from the system and never from what has been freed.
    texts = ["abcd"[row] * (480 - 90 * row) for row in range(4)]
    prompts = [Prompt(f"p{row}", texts[row % 4], "benign") for row in range(160)]
    expected = generate(subject, prompts[:4], GenerationConfig(4))
    tries: list[tuple[int, bool]] = []
    run = BatchLimit.run

    def noted(limit: BatchLimit, work: Callable[[], Any], used: int) -> Any:
        done = run(limit, work, used)
        tries.append((used, done is not None))
        return done

    size = int(OWN_SIZE.read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchLimit, "run", noted)
        resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), before[1]))
        found = generate(subject, prompts, GenerationConfig(4, batch_size=160))
        resource.setrlimit(resource.RLIMIT_AS, before)
    print(tries[0], tries[-1][1])
    print([trace.token_ids for trace in found] == [t.token_ids for t in expected] * 40)


@pytest.mark.skipif(not OWN_SIZE.exists(), reason="the size of a process is read as Linux tells it")
def test_memory_that_is_really_short(tmp_path: Path) -> None:
    """No injected error; in a process where no other test has left memory to be used again."""
    done = whole_output(really_short, save_tiny(tmp_path))
    assert done == (0, ["(160, False) True", "True"])


def test_what_fits_is_learnt_once_by_a_command(subject: Subject, small: Any) -> None:
    tries = small(2, ON_CPU)
    found: list[Trace | LeftOut] = []
    prompts = [Prompt(f"{row}", "q", "benign") for row in range(70)]
    LocalBackend(subject, CONFIG).answer(prompts, found.append)
    assert len(found) == 70
    assert (tries[:3], max(tries[2:])) == ([8, 4, 2], 2)


def test_one_answer_that_does_not_fit_is_named(subject: Subject, small: Any) -> None:
    small(0, ON_CPU)
    with pytest.raises(RefusalCliffError, match=r"prompt 'p0' alone, \d+ tokens .*--max-new-tok"):
        generate(subject, PROMPTS, CONFIG)


@pytest.mark.parametrize("error", [ON_CUDA, ON_CPU])
def test_capture_shares_it(subject: Subject, small: Any, error: Exception) -> None:
    rows = [list(range(5, 5 + length)) for length in (9, 8, 8, 7, 7)]

    def states() -> Any:
        reader = PositionResiduals([3] * len(rows), [1, 2], subject.width)
        capture(subject, rows, [reader])
        return reader.values

    expected = states()
    tries = small(2, error)
    assert states() == pytest.approx(expected, abs=1e-5)
    assert (tries[0], max(tries[2:])) == (5, 2)
    small(0, error)
    with pytest.raises(RefusalCliffError, match="Trace 1 alone, 9 tokens"):
        states()


def test_the_journal_is_not_confused_by_it(subject: Subject, small: Any, tmp_path: Path) -> None:
    from refusal_cliff.data.journal import Journal

    expected = generate(subject, PROMPTS, CONFIG)
    small(3, ON_CPU)
    with Journal(tmp_path / "kept") as journal:
        assert generate(subject, PROMPTS, CONFIG, journal=journal) == expected
    assert len(journal.rows) == len(PROMPTS)


def test_a_batch_that_is_read_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out after a reader has taken a batch; perplexities and means are the same."""
    subject = subject_of("small", tiny_model(), tiny_tokenizer())
    rows = [[5 + n, 9, 12, 30 + n] for n in range(6)]
    texts = [(row, 1) for row in rows]
    heads = [Head(1, 0), Head(2, 3)]
    means, likely = mean_outputs(subject, rows, heads), log_likelihoods(subject, texts)
    forward, failed = subject.model.forward, []

    def failing(*arguments: Any, **options: Any) -> Any:
        found = forward(*arguments, **options)
        if not failed:
            failed.append(True)
            raise ON_CUDA
        return found

    monkeypatch.setattr(subject.model, "forward", failing)
    assert np.allclose(log_likelihoods(subject, texts), likely, atol=1e-4)
    assert failed
    monkeypatch.undo()
    read = _HeadMeans.read_heads
    failed.clear()

    def failing_reader(self: Any, *arguments: Any) -> None:
        read(self, *arguments)
        if not failed:
            failed.append(True)
            raise ON_CUDA

    monkeypatch.setattr(_HeadMeans, "read_heads", failing_reader)
    for head, mean in mean_outputs(subject, rows, heads).items():
        assert torch.allclose(mean, means[head], atol=1e-6)
    assert failed
