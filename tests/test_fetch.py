"""The base checkpoint: verified, resumable, and never a way in for code."""

import hashlib
import json
import os
import pickle
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refit import paths
from refit.checkpoint import download
from refit.errors import ERRORS_BY_EXIT_CODE, CheckpointError, DownloadError, NetworkError, WorkspaceError
from refit.files import sha256_of_file
from refit.params import Params
from tasks import fetch

from .conftest import ROOT, change_params


@pytest.fixture
def weights(project: Path) -> Path:
    """A small safetensors file with a description in it."""
    description = {"architecture": "resnet18", "classes": ["a", "b"]}
    file = project / "weights.safetensors"
    save_file({"x": np.arange(50_000, dtype=np.float32)}, file, metadata={"refit": json.dumps(description)})
    return file


class Server(ThreadingHTTPServer):
    """Serves one file, and misbehaves as told."""

    content = b""
    etag = '"v1"'
    cut_after: int | None = None  # bytes after which the next answer breaks off
    status = 200
    ranges = True
    wrong_range = False

    def __init__(self) -> None:
        self.requests: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/weights.safetensors"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = 0
        fresh = self.headers.get("If-Range") in (None, self.server.etag)
        if asked and self.server.ranges and fresh:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            shown = 0 if self.server.wrong_range else start
            total = len(self.server.content)
            self.send_header("Content-Range", f"bytes {shown}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(body[:cut])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_SECONDS_BEFORE_RETRY", 0.0)
    with Server() as running:
        running.content = weights.read_bytes()
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def card() -> dict[str, object]:
    return json.loads(paths.BASE_CARD.read_text())


def test_a_pinned_file_is_taken_over_byte_for_byte(weights: Path, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=f"file:{weights}", checkpoint__sha256=sha256_of_file(weights))
    fetch.main()
    assert paths.BASE_WEIGHTS.read_bytes() == weights.read_bytes()
    assert card() == {
        "architecture": "resnet18",
        "classes": ["a", "b"],
        "format": "safetensors",
        "key": None,
        "num_tensors": 1,
        "pinned": True,
        "preprocessing": None,
        "sha256": sha256_of_file(weights),
        "source_sha256": sha256_of_file(weights),
        "uri": f"file:{weights}",
        "version": None,
    }


def test_the_embedded_checkpoint_is_the_pinned_one(project: Path) -> None:
    (project / "base").symlink_to(ROOT / "base")
    fetch.main()
    assert card()["architecture"] == "shufflenet_v2_x0_5"
    assert (ROOT / "base" / "glyphs.safetensors").stat().st_size <= 2_000_000


def test_scratch_is_an_empty_checkpoint(edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri="scratch", checkpoint__sha256=None, image__finetune__size=32)
    fetch.main()
    assert card()["num_tensors"] == 0
    assert load_file(paths.BASE_WEIGHTS) == {}


@pytest.mark.parametrize(
    ("uri", "digest", "expected"),
    [
        ("file:weights.safetensors", "0" * 64, "but `checkpoint.sha256` in params.yaml asks for 0000"),
        ("file:weights.safetensors", None, "is not pinned, and DVC does not watch it; add to params.yaml"),
        ("file:nowhere.safetensors", "0" * 64, "nowhere.safetensors does not exist; set `checkpoint.uri`"),
        ("http://127.0.0.1:9/x", None, "is not encrypted; use https, or pin it"),
    ],
)
def test_a_wrong_checkpoint_is_refused_and_leaves_nothing(
    weights: Path, edit_params: Callable[..., Params], uri: str, digest: str | None, expected: str
) -> None:
    edit_params(checkpoint__uri=uri, checkpoint__sha256=digest)
    with pytest.raises(CheckpointError) as caught:
        fetch.main()
    assert expected in str(caught.value)
    assert not paths.BASE_WEIGHTS.exists()
    assert not paths.BASE_CARD.exists()


def test_a_download_is_verified_and_not_repeated(server: Server, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=server.url, checkpoint__sha256=sha256(server.content))
    fetch.main()
    fetch.main()
    assert paths.BASE_WEIGHTS.read_bytes() == server.content
    assert server.requests == [None]


def test_a_download_with_another_digest_is_fetched_anew(server: Server, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=server.url, checkpoint__sha256=sha256(server.content))
    right, server.content = server.content, server.content[::-1]
    with pytest.raises(CheckpointError, match="it was changed or damaged"):
        fetch.main()
    server.content = right
    fetch.main()
    assert server.requests == [None, None]
    assert paths.BASE_WEIGHTS.read_bytes() == right


def test_the_pin_of_the_embedded_checkpoint_on_another_file_is_recognised(project: Path, weights: Path) -> None:
    (project / "base").symlink_to(ROOT / "base")
    change_params(project / "params.yaml", {"checkpoint.uri": f"file:{weights}"})
    with pytest.raises(CheckpointError, match=r"set checkpoint\.sha256 to null or to that file's digest"):
        fetch.main()
    assert weights.exists()


def test_the_query_of_an_address_is_neither_stored_nor_shown(
    server: Server, edit_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_params(checkpoint__uri=f"{server.url}?token=hunter2", checkpoint__sha256=sha256(server.content))
    fetch.main()
    assert card()["uri"] == server.url
    edit_params(checkpoint__sha256="0" * 64)
    with pytest.raises(CheckpointError) as wrong:
        fetch.main()
    server.status = 404
    with pytest.raises(DownloadError) as refused:
        fetch.main()
    shown = capsys.readouterr()
    assert "hunter2" not in f"{wrong.value} {refused.value} {shown.out} {shown.err}"


def test_a_file_in_the_place_of_the_downloads_is_named(project: Path) -> None:
    (project / ".refit").write_text("")
    with pytest.raises(WorkspaceError, match=r"cannot make the folder \.refit/downloads/"):
        download.download("https://example.org/x")


@pytest.mark.parametrize("cut", [1, 70_000])
def test_a_download_that_broke_off_goes_on(server: Server, cut: int, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=server.url, checkpoint__sha256=sha256(server.content))
    server.cut_after = cut
    fetch.main()
    assert paths.BASE_WEIGHTS.read_bytes() == server.content
    assert len(server.requests) == 2
    assert str(server.requests[1]).startswith("bytes=")


def test_a_download_goes_on_in_another_process(
    server: Server, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_params(checkpoint__uri=server.url, checkpoint__sha256=sha256(server.content))
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.cut_after = 60_000
    with pytest.raises(DownloadError, match=r"60,000 bytes have arrived and are kept"):
        fetch.main()
    assert not paths.BASE_WEIGHTS.exists()
    fetch.main()
    assert server.requests == [None, "bytes=60000-"]
    assert paths.BASE_WEIGHTS.read_bytes() == server.content


@pytest.mark.parametrize("fault", ["changed", "no ranges", "wrong range"])
def test_a_server_that_cannot_go_on_starts_over(server: Server, fault: str, edit_params: Callable[..., Params]) -> None:
    server.cut_after = 60_000
    if fault == "no ranges":
        server.ranges = False
    server.wrong_range = fault == "wrong range"
    if fault == "changed":
        download.DOWNLOADS.mkdir(parents=True)
        with pytest.raises(DownloadError):
            download_once(server)
        server.etag, server.content = '"v2"', server.content[::-1]
        assert download.download(server.url).read_bytes() == server.content
        return
    edit_params(checkpoint__uri=server.url, checkpoint__sha256=sha256(server.content))
    if fault == "wrong range":
        with pytest.raises(DownloadError, match="another part of the file than was asked for"):
            fetch.main()
        return
    fetch.main()
    assert paths.BASE_WEIGHTS.read_bytes() == server.content


def download_once(server: Server) -> None:
    attempts, download._ATTEMPTS = download._ATTEMPTS, 1
    try:
        download.download(server.url)
    finally:
        download._ATTEMPTS = attempts


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_a_server_that_refuses_is_asked_again_only_where_it_may_help(
    server: Server, status: int, attempts: int
) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        download.download(server.url)
    assert len(server.requests) == attempts


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue is full: the system drops what would connect, as a firewall does."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("where", ["nobody there", "no such name", "packets dropped"])
def test_without_a_network_it_is_tried_once_and_the_way_out_is_said(
    full_port: int, where: str, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    host = {
        "nobody there": "127.0.0.1:9",
        "no such name": "weights.invalid",
        "packets dropped": f"127.0.0.1:{full_port}",
    }
    assert download._TIMEOUT.connect == 5, "eight addresses that do not answer stay below a minute"
    monkeypatch.setattr(download, "_TIMEOUT", httpx.Timeout(30, connect=0.05))
    attempts: list[str] = []
    monkeypatch.setattr(download, "_append", _counted(download._append, attempts))
    edit_params(checkpoint__uri=f"http://{host[where]}/weights.pth?token=hunter2", checkpoint__sha256="0" * 64)
    with pytest.raises(NetworkError) as caught:
        fetch.main()
    assert len(attempts) == 1
    assert re.search(
        r"^no connection to http://[\w.:]+/weights.pth: .*HTTPS_PROXY.*`checkpoint\.uri: file:…`", str(caught.value)
    )
    assert not ERRORS_BY_EXIT_CODE[caught.value.exit_code].retryable, "nor does the flow try again"


def _counted(call: Callable[..., None], calls: list[str]) -> Callable[..., None]:
    def counted(url: str, partial: Path, token: str | None) -> None:
        calls.append(url)
        call(url, partial, token)

    return counted


def test_a_connection_that_is_lost_on_the_way_is_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike one that never was: the server answers, breaks off, and is gone."""
    server.cut_after = 60_000
    attempts: list[str] = []
    monkeypatch.setattr(download, "_append", _counted(download._append, attempts))

    def go_away(_seconds: float) -> None:
        if len(attempts) == 1:
            server.shutdown()
            server.server_close()

    monkeypatch.setattr(download.time, "sleep", go_away)
    with pytest.raises(DownloadError, match="60,000 bytes have arrived and are kept") as caught:
        download.download(server.url)
    assert len(attempts) == 3
    assert caught.value.retryable


def test_a_damaged_safetensors_file_is_refused(weights: Path, edit_params: Callable[..., Params]) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    edit_params(checkpoint__uri=f"file:{weights}", checkpoint__sha256=sha256_of_file(weights))
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        fetch.main()
    assert not paths.BASE_WEIGHTS.exists()


def test_an_output_folder_that_cannot_be_written_is_named(weights: Path, edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri=f"file:{weights}", checkpoint__sha256=sha256_of_file(weights))
    paths.BASE_WEIGHTS.parent.write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"cannot write checkpoints/base\.safetensors"):
        fetch.main()


class Canary:
    """Leaves a file behind if it is ever unpickled with code allowed."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def in_project_child(project: Path) -> None:
    """The child process finds the packages in the current folder, as in a real project."""
    (project / "refit").symlink_to(ROOT / "refit")


@pytest.mark.usefixtures("in_project_child")
def test_a_pickle_with_code_in_it_is_refused_and_not_run(project: Path, edit_params: Callable[..., Params]) -> None:
    canary = project / "canary"
    evil = project / "evil.pth"
    with zipfile.ZipFile(evil, "w") as packed:  # the layout of torch.save
        packed.writestr("evil/data.pkl", pickle.dumps({"x": Canary(canary)}))
        packed.writestr("evil/version", "3\n")
    plain = project / "plain.pth"
    plain.write_bytes(pickle.dumps({"x": Canary(canary)}))
    for file in (evil, plain):
        edit_params(checkpoint__uri=f"file:{file}", checkpoint__sha256=sha256_of_file(file))
        with pytest.raises(CheckpointError) as caught:
            fetch.main()
        assert file.name in str(caught.value)
        assert not canary.exists()
        assert not paths.BASE_WEIGHTS.exists()


@pytest.mark.usefixtures("in_project_child")
def test_a_torch_state_dict_is_converted(project: Path, edit_params: Callable[..., Params]) -> None:
    import torch

    tensors = {"module.a": torch.arange(6.0).reshape(2, 3), "module.b": torch.tensor(3)}
    torch.save({"state_dict": tensors, "epoch": 3}, project / "weights.pth")
    edit_params(checkpoint__uri="file:weights.pth", checkpoint__sha256=sha256_of_file(project / "weights.pth"))
    fetch.main()
    found = load_file(paths.BASE_WEIGHTS)
    assert sorted(found) == ["module.a", "module.b"], "the prefix is matter of the network"
    assert found["module.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (card()["format"], card()["key"]) == ("torch", "state_dict")


def test_the_child_process_knows_no_secrets(
    project: Path, edit_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "GOOGLE_APPLICATION_CREDENTIALS")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    spy = project / "python"
    spy.write_text(f'#!/bin/sh\nenv > {project}/seen\ncp base.pth $5\necho \'{{"key": ".", "others": []}}\'\n')
    spy.chmod(0o755)
    (project / "base.pth").write_bytes(b"no safetensors")
    monkeypatch.setattr(fetch.sys, "executable", str(spy))
    edit_params(checkpoint__uri="file:base.pth", checkpoint__sha256=sha256_of_file(project / "base.pth"))
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        fetch.main()
    seen = (project / "seen").read_text()
    assert "HOME=" in seen
    assert "hunter2" not in seen


@pytest.mark.usefixtures("in_project_child")
def test_a_key_chooses_in_a_torch_file_and_is_refused_for_safetensors(
    project: Path, weights: Path, edit_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    two = {"model": {"a": torch.zeros(2, 2)}, "model_ema": {"a": torch.ones(2, 2)}}
    torch.save(two, project / "weights.pth")
    edit_params(checkpoint__uri="file:weights.pth", checkpoint__sha256=sha256_of_file(project / "weights.pth"))
    with pytest.raises(CheckpointError, match=r"model \(1 tensors\), model_ema \(1 tensors\): set `checkpoint\.key`"):
        fetch.main()
    edit_params(checkpoint__key="model_ema")
    fetch.main()
    assert load_file(paths.BASE_WEIGHTS)["a"].tolist() == [[1, 1], [1, 1]]
    assert card()["key"] == "model_ema"
    assert "the weights under `model_ema` are taken; the file also has model" in capsys.readouterr().out
    edit_params(checkpoint__uri=f"file:{weights}", checkpoint__sha256=sha256_of_file(weights))
    with pytest.raises(CheckpointError, match=r"`checkpoint\.key` has no effect on a safetensors file"):
        fetch.main()


@pytest.mark.usefixtures("in_project_child")
def test_unknown_weights_of_torchvision_are_named_with_near_ones(edit_params: Callable[..., Params]) -> None:
    edit_params(checkpoint__uri="torchvision:ResNet18_Weights.V9", checkpoint__sha256=None)
    with pytest.raises(CheckpointError, match=r"near ones: .*ResNet18_Weights\.IMAGENET1K_V1"):
        fetch.main()
