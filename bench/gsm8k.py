"""How many sums of GSM8K's test set a model gets right, by the lm-evaluation-harness.

    pip install 'refusal-cliff[utility]'
    python -m bench.gsm8k --data DIR --n 100 MODEL …

The last number after the thinking is compared with the right one. Each model writes greedily.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from lab.pretrained.reasoner import thinking_base
from lab.pretrained.sources import find_file
from refusal_cliff.answers.utility import utility
from refusal_cliff.model.subject import load_subject
from refusal_cliff.organisms.bases import PACKAGES
from refusal_cliff.stats import Share

_TASK = r"""task: rc_gsm8k
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer.split('####')[-1].strip().replace(',', '')}}}}"
generation_kwargs:
  until: ["<never>"]
  max_gen_toks: {tokens}
  do_sample: false
filter_list:
  - name: last-number
    filter:
      - function: regex
        regex_pattern: '(-?[0-9][0-9,]*(?:\.[0-9]+)?)'
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
    regexes_to_ignore: [",", "\\.0+$"]
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    rows = find_file(options.data, "gsm8k_test_300", ("gsm8k_test_300",)).read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        asked = [json.loads(row) for row in rows[: options.n]]
        kept = [{"question": row["question"], "answer": row["answer"]} for row in asked]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        task = _TASK.format(file=file, tokens=options.tokens)
        (Path(folder) / "rc_gsm8k.yaml").write_text(task)
        for name in options.models:
            base = name in PACKAGES
            subject = (
                thinking_base(name, options.device)
                if base
                else load_subject(name, device=options.device)
            )
            for score in utility(
                subject, ["rc_gsm8k"], include=Path(folder), batch_size=options.batch_size
            ):
                right = Share(round(score.value * score.n), score.n)
                low, high = right.interval or (0.0, 1.0)
                print(
                    f"{name}: {right.count} of {score.n}, {score.value:.2f} [{low:.2f}, {high:.2f}]"
                )


if __name__ == "__main__":
    main()
