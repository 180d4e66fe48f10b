"""What a score costs on the disk, as it is kept and as float16, and what float16 would change.

python -m bench.score_bytes runs/m/model/scores.parquet
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from refusal_cliff.cliff.curves import cliffs_of
from refusal_cliff.cliff.scores import read_scores, write_scores
from refusal_cliff.tables import write_parquet_parts


def main() -> None:
    """One line a file."""
    for name in sys.argv[1:]:
        scores = read_scores(Path(name))
        halves = [row.logits.astype(np.float16) for row in scores]
        flat = np.concatenate([half.ravel() for half in halves])
        with tempfile.TemporaryDirectory() as folder:
            kept, half = Path(folder) / "kept.parquet", Path(folder) / "half.parquet"
            write_scores(kept, scores)
            table = pa.table({"logits": pa.array(flat)})
            write_parquet_parts(half, table.schema, [table], numbers="logits")
            sizes = [path.stat().st_size / flat.size for path in (Path(name), kept, half)]
        rounded = [
            replace(row, logits=half.astype(np.float32))
            for row, half in zip(scores, halves, strict=True)
        ]
        layers = range(len(scores[0].logits))
        pairs = (
            pair
            for layer in layers
            for pair in zip(cliffs_of(scores, layer), cliffs_of(rounded, layer), strict=True)
        )
        moved = max(
            max(abs(a.plateau_logit - b.plateau_logit), abs(a.final_logit - b.final_logit))
            for a, b in pairs
        )
        print(
            f"{name}: {len(scores)} traces, {flat.size // len(layers):,} tokens, {len(layers)} "
            "layers; bytes a score: {:.2f} in this file, {:.2f} as written now, {:.2f} as float16"
            "; ".format(*sizes)
            + f"float16 moves a plateau or final logit by up to {moved:.4f}"
        )


if __name__ == "__main__":
    main()
