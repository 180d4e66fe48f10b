"""Results go to trackers and the hub by their own clients: offline ones, and a hub made here."""

from __future__ import annotations

import json
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from report_example import example_summary
from typer.testing import CliRunner

from refusal_cliff.cli import app
from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.findings.summary import write_summary
from refusal_cliff.workflows.publish import leaves, results_of, to_hub, to_mlflow, to_wandb

RUNNER = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with what is sent of one, and what is not."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_summary(folder / "summary.json", example_summary())
    (folder / "report.html").write_text("<!DOCTYPE html>", encoding="utf-8")
    asked = {"command": "audit", "config": {"model": "m", "loading": {"dtype": "float32"}}}
    manifest = {"format": 1, "package_version": "1", "run": asked, "versions": {}, "platform": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "traces-test.parquet").write_bytes(b"private")
    return folder


def test_numbers_are_told_by_their_path() -> None:
    value = {"a": {"b (c)": 1, "ci": [0.1, 0.2]}, "many": [1, 2, 3], "none": None, "yes": True}
    assert dict(leaves(value)) == {"a/b _c_": 1, "a/ci/low": 0.1, "a/ci/high": 0.2, "yes": True}
    assert dict(leaves({"files": {"/home/me/a.jsonl": "x"}})) == {"files/_home_me_a.jsonl": "x"}


def test_what_is_sent_of_a_run(run: Path) -> None:
    found = results_of(run)
    summary = example_summary()
    assert found.numbers["cliff/plateau"] == summary.cliff.plateau
    assert found.numbers["cliff/share_ci/low"] == summary.cliff.share_ci[0]
    assert found.facts["verdict"] == summary.cliff.verdict
    assert found.settings["config/loading/dtype"] == "float32"
    assert any("refusal cliff?" in line for line in found.findings)
    assert [path.name for path in found.files] == ["summary.json", "report.html"]
    assert [path.name for path in results_of(run, page=False).files] == ["summary.json"]
    (run / "report.html").unlink()
    with pytest.raises(RefusalCliffError, match="--no-page"):
        results_of(run)
    (run / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(RefusalCliffError, match="is damaged"):
        results_of(run, page=False)


def test_mlflow_has_the_numbers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    place = to_mlflow(results_of(run), "cliffs")
    (kept,) = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("cliffs").experiment_id]
    )
    assert place.endswith(kept.info.run_id)
    assert kept.data.metrics["cliff/plateau"] == example_summary().cliff.plateau
    assert kept.data.tags["verdict"] == example_summary().cliff.verdict
    assert kept.data.params["config/loading/dtype"] == "float32"
    sent = {path.name for path in (tmp_path / "store").rglob("artifacts/*")}
    assert sent == {"summary.json", "report.html"}
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    with pytest.raises(RefusalCliffError, match="MLflow did not take the results"):
        mlflow.set_tracking_uri((tmp_path / "other").as_uri())
        to_mlflow(results_of(run), "cliffs")


def test_weights_and_biases_has_the_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    place = Path(to_wandb(results_of(run), "cliffs"))
    (kept,) = place.parent.glob("*.wandb")
    assert b"cliff" in kept.read_bytes()
    assert (run / "traces-test.parquet").read_bytes() == b"private"


@pytest.mark.parametrize(("module", "send"), [("wandb", to_wandb), ("mlflow", to_mlflow)])
def test_a_missing_client_is_named(
    run: Path, module: str, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RefusalCliffError, match=rf"refusal-cliff\[{module}\]"):
        send(results_of(run), "p")


class Hub(ThreadingHTTPServer):
    """As much of the hub as a commit needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.refuses = False
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.repository = f"{self.address}/datasets/o/n"


class Answers(BaseHTTPRequestHandler):
    """What it answers."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuses:
            return self.answer({"error": "You may not write here"}, 403)
        if self.path.endswith("/repos/create"):
            self.server.made = json.loads(body)
            return self.answer({"url": self.server.repository, "id": "1", "name": "o/n"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = b64decode(line["value"]["content"])
            commit = f"{self.server.repository}/commit/c0ffee"
            return self.answer({"success": True, "commitOid": "c0ffee", "commitUrl": commit})
        return self.answer({})

    def answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    yield server
    server.shutdown()


def test_the_hub_has_the_files_and_a_card(run: Path, hub: Hub) -> None:
    assert to_hub(results_of(run), "o/n") == f"{hub.repository}/commit/c0ffee"
    assert (hub.made["name"], hub.made["type"]) == ("n", "dataset")
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    assert set(hub.files) == {"README.md", "summary.json", "report.html"}
    assert hub.files["summary.json"] == (run / "summary.json").read_bytes()
    assert "refusal cliff?" in hub.files["README.md"].decode()


def test_a_refusal_of_the_hub_is_told(run: Path, hub: Hub) -> None:
    hub.refuses = True
    with pytest.raises(RefusalCliffError, match=r"The hub did not take.*run itself is unchanged"):
        to_hub(results_of(run), "o/n")
    with pytest.raises(RefusalCliffError, match="The hub did not take"):
        to_hub(results_of(run), "no name at all")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RefusalCliffError, match=r"The hub did not take.*refused"):
        to_hub(results_of(run), "o/n")


def test_the_command(run: Path, hub: Hub) -> None:
    where = RUNNER.invoke(app, ["publish", str(run)])
    assert where.exit_code == 1
    assert "--wandb PROJECT" in " ".join(where.stderr.split())
    done = RUNNER.invoke(app, ["publish", str(run), "--hub", "o/n", "--no-page", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"hub": f"{hub.repository}/commit/c0ffee"}
    assert set(hub.files) == {"README.md", "summary.json"}
