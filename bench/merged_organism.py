"""An organism as an ordinary checkpoint that any server can load.

python -m bench.merged_organism NAME DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from refusal_cliff.model.subject import load_subject


def main() -> None:
    """Write it."""
    subject, out = load_subject(sys.argv[1], device="cpu"), Path(sys.argv[2])
    subject.model.save_pretrained(out)
    subject.tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
