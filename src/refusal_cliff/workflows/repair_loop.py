"""A loop that ends in proof: select → train → measure again → what became of harm and cliff.

The folder holds ``repair.json`` (whose it is), ``selection`` (see `selection_run`), ``adapter``
(see `training_run`) and a run folder ``proof``. Each part goes on where it was killed. Scores and
an adapter made from something else are never replaced: delete that part, or take a new folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refusal_cliff.answers.correction import judged_rates, refusal_error
from refusal_cliff.data.examples import write_prompts
from refusal_cliff.data.reading import DEFAULT, Reading
from refusal_cliff.data.traces import PromptFile
from refusal_cliff.data.types import Prompt
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.wording import Finding, about_judge
from refusal_cliff.folders import claim, require_output
from refusal_cliff.io import read_as, sha256_file
from refusal_cliff.judges import Remembering
from refusal_cliff.judges.choose import full_name, judge_of, published_name
from refusal_cliff.model.subject import load
from refusal_cliff.probe.files import probes_of
from refusal_cliff.progress import Watch, unwatched
from refusal_cliff.repair.proof import Proof, findings
from refusal_cliff.repair.training import load_repaired
from refusal_cliff.repair.training_run import check_out, finish_card, steps_to, train_from_files
from refusal_cliff.run.folder import Headline, RunInfo
from refusal_cliff.run.pipeline import Job, Observer, Stage, run_pipeline
from refusal_cliff.select.selection_run import SELECTED, Source, evaluation_of, run_selection
from refusal_cliff.select.shards import ScoringPlan
from refusal_cliff.settings import Engine, RepairConfig
from refusal_cliff.sharded import HERE
from refusal_cliff.stages.mend import PROOF, proof_stages
from refusal_cliff.stages.study import TEST_PROMPTS, Study

COMMAND, ADAPTER = "repair", "adapter"


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What the loop is made of.

    Attributes:
        scoring: The model, its probe, how candidates are scored, and which are wanted.
        data: Safety data to choose from.
        benign: Benign examples with answers; see `training_run.train_from_files`.
        benign_reading: How their rows are read; the markers are those of ``data``.
        training: Budget and mix.
        prompts: Files of test prompts, harmful and benign; by default those of the probe's run.
        engine: Where candidates are scored.
    """

    scoring: ScoringPlan
    data: Source
    benign: str
    training: RepairConfig
    prompts: tuple[PromptFile, ...] = ()
    benign_reading: Reading = DEFAULT
    engine: Engine = HERE


def run_repair(
    plan: RepairPlan, out: Path, watch: Watch = unwatched, observer: Observer | None = None
) -> tuple[Proof, Sequence[Finding]]:
    """Run, or continue, the loop in the folder ``out``.

    Args:
        plan: What is done.
        out: The folder; made if absent.
        watch: Told what is done of selection and training.
        observer: Told of the stages of the proof.

    Raises:
        RefusalCliffError: A file, the model or the folder cannot be used.
    """
    settings = plan.scoring.judge
    error = refusal_error(full_name(settings), settings.error)
    files = plan.prompts or tests_of_run(plan.scoring.probe)
    read = (plan.scoring.model, plan.scoring.probe, plan.data.name, plan.benign)
    require_output(out, COMMAND, (*read, *settings.inputs, *(file.path for file in files)))
    asked = [prompt for file in files for prompt in file.prompts()]
    check_out(out / ADAPTER, plan.training)
    claim(out, COMMAND, {}, "a repair")
    scoring = replace(plan.scoring, out=out / "selection")
    selecting = scoring.selecting
    kept_out = {file.path.resolve(): file for file in (*plan.data.evaluation, *files)}
    data = replace(plan.data, evaluation=tuple(kept_out.values()))
    run_selection(scoring, data, engine=plan.engine, watch=watch)
    subject = load(scoring.model, scoring.loading)
    adapter = train_from_files(
        subject,
        scoring.out / SELECTED,
        plan.benign,
        plan.training,
        out / ADAPTER,
        replace(plan.benign_reading, markers=plan.data.reading.markers),
        steps_to(watch),
    )
    judge = Remembering(judge_of(settings))
    before = Study("before", subject, selecting.seed, scoring.generation, judge=judge)
    studies = (before, replace(before, key="after", subject=load_repaired(subject, adapter)))
    stages = [
        _prompts_stage(files, asked),
        *proof_stages(*studies, probes_of(scoring.probe, subject)),
    ]
    info = RunInfo(
        command=COMMAND,
        config={
            "model": scoring.model,
            "data": data.name,
            "strategy": selecting.strategy,
            "judge": judge.name,
        },
        seeds={"all": selecting.seed},
        subjects={study.subject.name: study.subject.fingerprint for study in studies},
    )
    run_pipeline(out / "proof", stages, info, observer)
    proof = read_as(out / "proof" / PROOF, Proof)
    rates = {
        f"{name} {when}": share
        for when, side in (("before", proof.before), ("after", proof.after))
        for name, share in side.complying.items()
    }
    judged = judged_rates(published_name(judge.name), error, rates)
    found = [*findings(proof), about_judge(judged)]
    finish_card(adapter, [f"- {f.question} {f.answer}" for f in found])
    return proof, found


def tests_of_run(probe: Path) -> tuple[PromptFile, ...]:
    """The test prompts of the run that a probe comes from.

    Raises:
        RefusalCliffError: It comes from none.
    """
    found = tuple(file for file in evaluation_of(probe) if file.path.name == "test.jsonl")
    if not found:
        raise RefusalCliffError(
            f"{probe} is not part of a run, so there are no test prompts. Give some "
            "(--prompts FILE, with a column 'label'), or the folder DIR/KEY of an audit."
        )
    return found


def _prompts_stage(files: Sequence[PromptFile], prompts: Sequence[Prompt]) -> Stage:
    def write(job: Job) -> Headline:
        write_prompts(job.output(TEST_PROMPTS), prompts)
        return {"test": len(prompts)}

    described = [file.reading.described() for file in files if file.reading != DEFAULT]
    config: dict[str, object] = {"files": [sha256_file(file.path) for file in files]}
    if described:
        config["read"] = described
    return Stage("prompts", (), (TEST_PROMPTS,), config, write)
