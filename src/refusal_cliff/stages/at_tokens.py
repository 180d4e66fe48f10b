"""tokens: the text of every token of the test traces, and what each head adds there."""

from __future__ import annotations

from refusal_cliff.data.traces import read_traces
from refusal_cliff.heads.at_tokens import (
    AS_IT_IS,
    HEADS_OUT,
    SHOWN,
    TokenRow,
    head_contributions,
    told_heads,
    write_token_rows,
)
from refusal_cliff.heads.table import read_heads
from refusal_cliff.io import read_json
from refusal_cliff.model.subject import parse_head
from refusal_cliff.report.pieces import Pieces
from refusal_cliff.run.folder import Headline
from refusal_cliff.run.pipeline import Job, Stage
from refusal_cliff.stages.measure import input_probes
from refusal_cliff.stages.study import Study

TOKENS = "tokens.parquet"


def tokens_stage(study: Study) -> Stage:
    """What a page shows of tokens: ``tokens.parquet``, one row a trace, before and after."""
    names = ("traces-test.parquet", "ablated.parquet", "heads.parquet", "ablation.json")
    probes = ("probes.safetensors", "probes.json")
    return study.stage(
        "tokens",
        [study.path(name) for name in (*names, *probes)],
        (TOKENS,),
        lambda job: _tokens(study, job),
        {"shown": SHOWN},
    )


def _tokens(study: Study, job: Job) -> Headline:
    before, after = (
        read_traces(job.input(study.path(name)))
        for name in ("traces-test.parquet", "ablated.parquet")
    )
    found = map(parse_head, read_json(job.input(study.path("ablation.json")))["heads"])
    rows = read_heads(job.input(study.path("heads.parquet")), study.subject)
    heads = told_heads(rows, list(found))
    probe = input_probes(study, job).chosen
    values = head_contributions(study.subject, before, probe, heads, job.progress)
    pieces = Pieces(study.subject.tokenizer)
    table = [
        TokenRow(trace.prompt.id, AS_IT_IS, pieces.of(trace.token_ids), heads, part)
        for trace, part in zip(before, values, strict=True)
    ]
    table += [TokenRow(t.prompt.id, HEADS_OUT, pieces.of(t.token_ids)) for t in after]
    write_token_rows(job.output(study.path(TOKENS)), table)
    return {"tokens": sum(len(one.pieces) for one in table)}
