"""Base checkpoints that lie in buckets, on a model hub and in the registry: each against a server of its kind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from refit import paths
from refit.checkpoint import buckets, download
from refit.errors import CheckpointError, DownloadError, EvidenceError, NetworkError, TrackingError
from refit.files import sha256_of_file
from refit.params import Params, load_params
from tasks import fetch, finetune, promote

from .conftest import change_params
from .servers import free_port
from .test_promote import candidate, passing

__all__ = ["passing"]  # a fixture

SECRET = "hunter2"


@pytest.fixture
def weights(project: Path) -> Path:
    file = project / "weights.safetensors"
    save_file({"x": np.arange(900_000, dtype=np.float32)}, file)  # several blocks
    return file


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SECONDS_BEFORE_RETRY", 0.0)


def card() -> dict[str, Any]:
    return json.loads(paths.BASE_CARD.read_text())


# Buckets


@pytest.fixture
def s3(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A server with the weights in s3://models/nets/weights.safetensors; its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    settings = {
        "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="nets/weights.safetensors", Body=weights.read_bytes())
    yield address
    server.stop()


@pytest.fixture
def gs(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with the weights in gs://models/nets/weights.safetensors; its address."""
    import httpx
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    address = f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # whether this is a machine of that cloud
    query = {"uploadType": "media", "name": "nets/weights.safetensors"}
    upload = f"{address}/upload/storage/v1/b/models/o"
    httpx.post(upload, params=query, content=weights.read_bytes()).raise_for_status()
    yield address
    server.stop()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_object_in_a_bucket_is_fetched(
    scheme: str, weights: Path, edit_params: Callable[..., Params], request: pytest.FixtureRequest, capsys: Any
) -> None:
    request.getfixturevalue(scheme)
    edit_params(checkpoint__uri=f"{scheme}://models/nets/weights.safetensors", checkpoint__sha256=None)
    fetch.main()
    assert paths.BASE_WEIGHTS.read_bytes() == weights.read_bytes()
    assert (
        f"not pinned; add to params.yaml under `checkpoint`:  sha256: {sha256_of_file(weights)}"
        in capsys.readouterr().out
    )
    assert card()["uri"] == f"{scheme}://models/nets/weights.safetensors"
    edit_params(checkpoint__sha256="0" * 64)
    with pytest.raises(
        CheckpointError, match=r"has SHA-256 \w+, but `checkpoint\.sha256` in params\.yaml asks for 000"
    ):
        fetch.main()
    assert list(Path(".refit/downloads").rglob("weights*")) == []


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_has_arrived_from_a_bucket_is_kept(
    scheme: str, weights: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(scheme)
    uri, starts, whole = f"{scheme}://models/nets/weights.safetensors", [], buckets.Found.blocks

    def broken_off(found: buckets.Found, start: int) -> Iterator[bytes]:
        starts.append(start)
        blocks = whole(found, start)
        yield next(blocks)
        if len(starts) == 1:
            raise buckets.BrokenOffError("it broke off")
        yield from blocks

    monkeypatch.setattr(buckets.Found, "blocks", broken_off)
    assert download.download(uri).read_bytes() == weights.read_bytes()
    assert starts == [0, 1 << 20]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_object_that_is_not_there_is_asked_for_once(scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(scheme)
    for bucket in ("models", "other-models"):
        with pytest.raises(DownloadError, match=f"cannot download {scheme}://{bucket}/x: there is no such object"):
            download.download(f"{scheme}://{bucket}/x")


def test_a_bucket_that_is_closed_to_this_account_is_said_to_be(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(DownloadError, match="no account for it is set up here") as caught:
        download.download("s3://models/nets/weights.safetensors")
    assert SECRET not in str(caught.value)


def test_a_bucket_that_nobody_serves_is_no_connection(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(NetworkError, match=r"no connection to s3://models/nets/weights\.safetensors"):
        download.download("s3://models/nets/weights.safetensors")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_extra_is_named(scheme: str, package: str, project: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from refit.checkpoint.download import download\ndownload('{scheme}://models/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert f"needs the extra `{scheme}` of Refit: `uv pip install --python .venv -e '.[{scheme}]'`" in done.stderr


# A hub


COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """Answers as a hub does: sends files of a commit from another host."""

    def __init__(self, content: bytes, storage: str | None) -> None:
        self.content, self.storage = content, storage
        self.seen: list[tuple[str, str | None]] = []  # path, authorization
        self.token: str | None = None
        self.commit = COMMIT
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.server.seen.append((self.path, given))
        if self.server.token and given != f"Bearer {self.server.token}":
            self.send_error(401)
        elif self.path.startswith("/api/models/"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"sha": self.server.commit, "siblings": []}).encode())
        elif self.server.storage:
            self.send_response(302)
            self.send_header("Location", f"{self.server.storage}/blob?signature={SECRET}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.content)))
            self.send_header("ETag", '"v1"')
            self.end_headers()
            self.wfile.write(self.server.content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Hub]]:
    """The hub, and where its files are stored."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub(weights.read_bytes(), None) as storage, Hub(b"", f"http://127.0.0.1:{storage.server_port}") as front:
        monkeypatch.setenv("HF_ENDPOINT", f"{front.url}/")
        for server in (storage, front):
            Thread(target=server.serve_forever, daemon=True).start()
        yield front, storage
        for server in (storage, front):
            server.shutdown()


def test_a_file_of_a_hub_is_fetched_with_its_commit(
    hub: tuple[Hub, Hub], weights: Path, edit_params: Callable[..., Params], capsys: Any
) -> None:
    edit_params(checkpoint__uri="hf:timm/net/sub/model.safetensors", checkpoint__sha256=sha256_of_file(weights))
    front, _ = hub
    asked, file = "/api/models/timm/net/revision", "sub/model.safetensors"
    for _ in range(2):
        fetch.main()
        assert card()["version"] == f"hf:timm/net@{COMMIT}/{file}"
    first = [(f"{asked}/main", None), (f"/timm/net/resolve/{COMMIT}/{file}", None), (f"{asked}/main", None)]
    assert front.seen == first, "a commit's file is not asked for again"
    assert paths.BASE_WEIGHTS.read_bytes() == weights.read_bytes()
    front.commit = "2" * 40  # the branch moves
    fetch.main()
    assert card()["version"] == f"hf:timm/net@{front.commit}/{file}"
    edit_params(checkpoint__uri=f"hf:timm/net@refs%2Fpr%2F1/{file}")
    fetch.main()
    assert front.seen[-1][0] == f"{asked}/refs%2Fpr%2F1"
    edit_params(checkpoint__uri=f"hf:timm/net@{'3' * 40}/{file}")
    fetch.main()
    assert front.seen[-1][0] == f"/timm/net/resolve/{'3' * 40}/{file}"
    assert SECRET not in capsys.readouterr().out + paths.BASE_CARD.read_text()


def test_the_token_goes_to_the_hub_alone(
    hub: tuple[Hub, Hub],
    weights: Path,
    edit_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    front, storage = hub
    front.token = SECRET
    edit_params(checkpoint__uri="hf:me/private/model.safetensors", checkpoint__sha256=sha256_of_file(weights))
    with pytest.raises(DownloadError, match=r"the server answered 401.*or put a token into .* HF_TOKEN"):
        fetch.main()
    monkeypatch.setenv("HF_TOKEN", SECRET)
    fetch.main()
    assert front.seen[-1][1] == f"Bearer {SECRET}"
    assert [given for _, given in storage.seen] == [None]
    left = "".join(file.read_text(errors="replace") for file in Path(".refit").rglob("*.json"))
    assert SECRET not in capsys.readouterr().out + paths.BASE_CARD.read_text() + left


def test_a_hub_without_encryption_needs_a_pin(hub: tuple[Hub, Hub], edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri="hf:me/net/model.safetensors", checkpoint__sha256=None)
    with pytest.raises(CheckpointError, match=r"HF_ENDPOINT is http://.* not encrypted; use https, or pin hf:me/net"):
        fetch.main()
    assert hub[0].seen == []


# The registry


@pytest.mark.usefixtures("no_processes")
def test_a_registered_version_is_gone_on_from(passing: Path, capsys: Any) -> None:
    """Weights, preprocessing and classes, the head among them; the alias moves, and the card says from what to what."""
    weights, model_card = paths.MODEL_WEIGHTS.read_bytes(), json.loads(paths.MODEL_CARD.read_text())
    with pytest.raises(TrackingError, match="pets has no champion yet"):
        fetched("models:/pets@champion")
    promote.promote(candidate(0.7), "first", is_forced=True)
    fetched("models:/pets@champion")
    assert paths.BASE_WEIGHTS.read_bytes() == weights
    found = card()
    assert (found["uri"], found["version"]) == ("models:/pets@champion", "models:/pets/1")
    assert (found["format"], found["pinned"]) == ("refit", False)
    for name in ("architecture", "preprocessing", "classes"):
        assert found[name] == model_card[name]
    shown = capsys.readouterr().out
    assert (
        f"(now models:/pets/1) is not pinned; add to params.yaml under `checkpoint`:  sha256: {found['sha256']}"
        in shown
    )
    assert "models:/pets@champion (models:/pets/1): " in shown

    # From classes of its own, the head goes on too: without a step of learning it says what the champion says.
    change_params(Path("params.yaml"), {"image.finetune.size": None, "finetune.learning_rate": 1e-12})
    finetune.main()
    capsys.readouterr()
    from safetensors.numpy import load_file

    after = load_file(paths.MODEL_WEIGHTS)
    before = load_file(paths.BASE_WEIGHTS)
    assert np.allclose(after["fc.weight"], before["fc.weight"], atol=1e-5)
    trained = json.loads(paths.MODEL_CARD.read_text())
    assert trained["pretrained"]["share"] == 1.0
    assert trained["pretrained"]["loaded"] == len(before)
    assert trained["lineage"]["base_sha256"] == found["sha256"]

    # Another model becomes the champion: the alias means that one now, and the pin of the first says so.
    from tasks import compare, evaluate

    evaluate.main()
    compare.main()
    promote.promote(candidate(0.8), "second", is_forced=True)
    with pytest.raises(
        CheckpointError, match=r"@champion \(now models:/pets/2\) has SHA-256 .*; the address moves: name"
    ):
        fetched("models:/pets@champion", found["sha256"])
    fetched("models:/pets/1", found["sha256"])
    assert card()["sha256"] == found["sha256"]
    fetched("models:/pets-candidates@candidate")
    assert card()["version"] == "models:/pets-candidates/2"


def fetched(uri: str, digest: str | None = None) -> None:
    change_params(Path("params.yaml"), {"checkpoint.uri": uri, "checkpoint.sha256": digest})
    fetch.main()


def test_fetch_does_not_open_mlflow_for_other_addresses(weights: Path, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=f"file:{weights}", checkpoint__sha256=sha256_of_file(weights))
    code = "import sys; from tasks import fetch; fetch.main(); print('mlflow' in sys.modules, 's3fs' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]


def test_a_version_that_refit_did_not_register_is_refused(project: Path) -> None:
    from refit.registry import tracking

    settings = load_params().register
    with tracking.connected(settings) as client:
        client.create_registered_model("other")
        client.create_model_version("other", source=str(project), run_id=None)
    with pytest.raises(EvidenceError, match="models:/other/1 has no evidence; it was not made by Refit"):
        fetched("models:/other/1")
