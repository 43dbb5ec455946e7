"""A team's services: deploy/compose.yaml says what it promises, Prefect takes the job templates, and the servers run on
a real PostgreSQL that deploy/postgres-init.sh has set up.
"""

import asyncio
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from mlflow.exceptions import MlflowException

from refit.params import load_params, read_yaml
from refit.registry.tracking import candidates
from tasks.register import register_candidate

from .conftest import ROOT
from .servers import free_port, serving
from .services import environment, post, prefect_api, run
from .test_tracking import client

__all__ = ["prefect_api"]  # fixtures

DEPLOY = ROOT / "deploy"
COMPOSE_TEXT = (DEPLOY / "compose.yaml").read_text()
SERVICES: dict[str, dict[str, Any]] = read_yaml(DEPLOY / "compose.yaml")["services"]
VARIABLE = re.compile(r"\$\{(\w+)(:[-?])([^}]*)\}")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING")


# deploy/compose.yaml


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_watched(service: str) -> None:
    waits_for = SERVICES[service].get("depends_on", {})
    is_over_soon = SERVICES[service].get("restart") == "no"
    assert "healthcheck" in SERVICES[service] or (
        is_over_soon and any(other["condition"] == "service_healthy" for other in waits_for.values())
    )
    for name, other in waits_for.items():
        expected = "service_completed_successfully" if SERVICES[name]["restart"] == "no" else "service_healthy"
        assert other["condition"] == expected, name


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_written_down(service: str) -> None:
    for name, value in SERVICES[service].get("environment", {}).items():
        if SECRET.search(name):
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
        assert not re.search(r"://[^/@:]*:(?!\$\{\w+:\?)[^/@]*@", value), name


def test_what_has_no_value_stops_the_start_and_what_has_a_default_is_no_secret() -> None:
    assert COMPOSE_TEXT.count("${") == len(VARIABLE.findall(COMPOSE_TEXT)), "each is ${NAME:?message} or ${NAME:-value}"
    with_default = {name for name, kind, _ in VARIABLE.findall(COMPOSE_TEXT) if kind == ":-"}
    assert with_default == {
        "REFIT_BIND", "REFIT_SHM_SIZE", "REFIT_CPU_MEMORY", "REFIT_GPU_MEMORY", "MLFLOW_HOST", "PREFECT_URL",
    }  # fmt: skip


def test_every_variable_is_documented() -> None:
    documented = re.findall(r"^\| `([A-Z0-9_]+)` \|", (ROOT / "docs" / "team.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted({name for name, _, _ in VARIABLE.findall(COMPOSE_TEXT)})


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":(\d+\.\d+|\$\{REFIT_IMAGE_VERSION:\?)", service["image"]), name
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^FROM .*:\d+\.\d+\.\d+-\S+$", dockerfile, re.MULTILINE) == re.findall(
        r"^FROM .*$", dockerfile, re.MULTILINE
    )
    assert re.search(r"uv==\d", dockerfile)


def test_ports_are_open_to_this_machine_only() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("${REFIT_BIND:-127.0.0.1}:") for port in service.get("ports", [])), name
    assert not {"postgres", "store"} & {name for name, service in SERVICES.items() if "ports" in service}


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_fills_the_memory_or_the_disk_of_the_others(service: str) -> None:
    assert SERVICES[service]["mem_limit"]
    assert set(SERVICES[service]["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("pool", ["cpu", "gpu", "review"])
def test_each_pool_of_the_deployments_has_a_worker_that_may_save_a_state(pool: str) -> None:
    pools = {entry["work_pool"]["name"] for entry in read_yaml(ROOT / "prefect.yaml")["deployments"]}
    assert pools == {"cpu", "gpu", "review"}
    assert f"work-pool create {pool} " in SERVICES["pools"]["command"][-1]
    worker = SERVICES[f"{pool}-worker"]
    assert f"--pool={pool}" in worker["command"]
    assert worker["stop_grace_period"] == "1m", "20 s for the state, and its upload"
    assert worker["command"][:2] == ["python", "/worker.py"], "which gives the runs that minute"
    assert pool == "review" or "cache:/var/cache/refit" in worker["volumes"], "what DVC brought outlives a container"


def test_the_store_may_have_as_many_volumes_as_the_disk_has_room_for() -> None:
    options = SERVICES["store"]["command"]
    assert {"-dir=/data", "-volume.max=0", "-master.volumeSizeLimitMB=1024"} <= set(options)


def test_no_worker_reaches_a_database() -> None:
    for name in ("cpu-worker", "gpu-worker", "review-worker"):
        assert SERVICES[name]["networks"] == ["services"]
    assert [name for name, service in SERVICES.items() if "databases" in service["networks"]] == [
        "postgres", "mlflow", "prefect",
    ]  # fmt: skip


def test_the_files_that_are_mounted_exist() -> None:
    sources = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert all((DEPLOY / source).exists() for source in sources if source.startswith("."))


def test_the_two_locks_do_not_contradict_each_other() -> None:
    def pins(file: Path) -> dict[str, str]:
        return dict(line.partition(" ")[0].split("==") for line in file.read_text().splitlines())

    ours, theirs = pins(ROOT / "requirements.lock"), pins(DEPLOY / "services.lock")
    assert {name: ours.get(name, pin) for name, pin in theirs.items()} == theirs


def test_the_identities_of_the_bucket_store(tmp_path: Path) -> None:
    (tmp_path / "weed").write_text('#!/bin/sh\nfor last; do :; done\ncat "${last#-config=}"\n')
    (tmp_path / "weed").chmod(0o755)
    script = (DEPLOY / "s3-start.sh").read_text().replace("/tmp/s3.json", str(tmp_path / "s3.json"))
    secrets = {"S3_ADMIN_SECRET": "a", "S3_MLFLOW_SECRET": "m", "S3_DVC_SECRET": "d"}
    env = environment(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", **secrets)
    written = json.loads(run("sh", "-c", script, cwd=tmp_path, env=env))
    rights = {identity["name"]: identity["actions"] for identity in written["identities"]}
    assert all(action.endswith(f":{name}") for name in ("mlflow", "dvc") for action in rights[name])
    assert [identity["credentials"][0]["secretKey"] for identity in written["identities"]] == ["a", "m", "d"]
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("protocol", "host", "verb", "told"),
    [
        ("https", "git.example.org", "get", "username=robot\npassword=s3cret\n"),
        ("https", "elsewhere.example.org", "get", ""),
        ("http", "git.example.org", "get", ""),
        ("https", "git.example.org", "store", ""),
    ],
)
def test_the_git_token_is_for_one_host(protocol: str, host: str, verb: str, told: str) -> None:
    settings = {"REFIT_GIT_HOST": "git.example.org", "REFIT_GIT_USERNAME": "robot", "REFIT_GIT_TOKEN": "s3cret"}
    asked = subprocess.run(
        [str(DEPLOY / "git-credential-refit"), verb], input=f"protocol={protocol}\nhost={host}\n\n", text=True,
        capture_output=True, check=True, env={"PATH": os.environ["PATH"], **settings},
    )  # fmt: skip
    assert asked.stdout == told


# deploy/work-pools/*.json

KINDS = ("process", "docker", "kubernetes")
GOOD: dict[str, dict[str, Any]] = {
    "process": {"num_gpus": 4, "num_nodes": 2},
    "docker": {"num_gpus": 4, "num_nodes": 2, "image": "registry.example.org/refit:7", "shm_size": "16g"},
    "kubernetes": {"num_gpus": 4, "num_nodes": 2, "image": "registry.example.org/refit:7", "shm_size": "16Gi"},
}
BAD: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"num_gpus": "many"}) for kind in KINDS),
    *((kind, {"num_gpus": 0}) for kind in KINDS),
    *((kind, {"num_nodes": 1.5}) for kind in KINDS),
    ("docker", {"shm_size": "much"}),
    ("kubernetes", {"shm_size": "16 gigabytes"}),
    ("kubernetes", {"image_pull_policy": "Sometimes"}),
]


def template_of(kind: str) -> dict[str, Any]:
    return json.loads((DEPLOY / "work-pools" / f"{kind}-gpu.json").read_text())


@pytest.fixture(scope="module")
def pools(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The three pools, on the Prefect server whose address this is."""
    for kind in KINDS:
        post(prefect_api, "work_pools/", name=f"{kind}-gpu", type=kind, base_job_template=template_of(kind))
    return prefect_api


def deploy(api: str, kind: str, variables: dict[str, Any], **more: Any) -> str:
    flow = post(api, "flows/", name="look" if more else "trial")["id"]
    body = {"name": kind, "flow_id": flow, "work_pool_name": f"{kind}-gpu", "job_variables": variables, **more}
    return str(post(api, "deployments/", **body)["id"])


def ask_for_a_run(api: str, deployment: str) -> None:
    post(api, f"deployments/{deployment}/create_flow_run", state={"type": "SCHEDULED"})


@pytest.mark.parametrize("kind", KINDS)
def test_prefect_takes_the_template_and_its_variables(pools: str, kind: str) -> None:
    deploy(pools, kind, GOOD[kind])


@pytest.mark.parametrize(("kind", "wrong"), BAD)
def test_prefect_refuses_wrong_variables(pools: str, kind: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(HTTPError) as refused:
        deploy(pools, kind, GOOD[kind] | wrong)
    assert 400 <= refused.value.code < 500


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_without_an_image_no_run_begins(pools: str, kind: str) -> None:
    deployment = deploy(pools, kind, {"num_gpus": 1})  # it could still come with the run
    with pytest.raises(HTTPError) as refused:
        ask_for_a_run(pools, deployment)
    assert b"'image' is a required property" in refused.value.read()


def rendered(kind: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The job as Prefect's own code makes it from the template. Its docker and kubernetes workers are not installed."""
    from prefect.client.orchestration import PrefectClient
    from prefect.workers.base import BaseJobConfiguration

    class Job(BaseJobConfiguration, extra="allow"):
        pass

    async def make() -> dict[str, Any]:
        async with PrefectClient("http://127.0.0.1:9/api") as nobody:  # only blocks would be asked for
            return dict(await Job.from_template_and_values(template_of(kind), variables, client=nobody))

    return asyncio.run(make())


@pytest.mark.parametrize("kind", KINDS)
def test_gpus_and_nodes_reach_the_job_beside_its_own_environment(kind: str) -> None:
    job = rendered(kind, GOOD[kind] | {"env": {"MINE": "kept"}})
    assert job["env"] == {"REFIT_NUM_GPUS": "4", "REFIT_NUM_NODES": "2", "MINE": "kept"}
    assert "{{" not in json.dumps(job, default=str)


def test_a_container_gets_gpus_and_shared_memory() -> None:
    job = rendered("docker", GOOD["docker"])
    assert job["image"] == "registry.example.org/refit:7"
    request = {"Driver": "nvidia", "Count": 4, "Capabilities": [["gpu"]]}
    assert job["container_create_kwargs"] == {"shm_size": "16g", "device_requests": [request]}


def test_a_pod_gets_gpus_and_shared_memory() -> None:
    pod = rendered("kubernetes", GOOD["kubernetes"])["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.org/refit:7"
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 4}
    assert container["resources"]["requests"]["nvidia.com/gpu"] == 4, "for extended resources both must be equal"
    assert pod["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]
    assert container["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    assert container["envFrom"] == [{"secretRef": {"name": "refit"}}]
    assert pod["securityContext"]["runAsNonRoot"] is True


FLOW = """
import json, os
from pathlib import Path
from prefect import flow

@flow
def look():
    seen = {name: os.environ.get(name) for name in ("REFIT_NUM_GPUS", "REFIT_NUM_NODES")}
    Path(os.environ["SEEN"]).write_text(json.dumps(seen))
"""


def test_a_process_worker_passes_them_on(pools: str, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(FLOW)
    variables = {"num_gpus": 4, "env": {"SEEN": str(tmp_path / "seen.json")}}
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    ask_for_a_run(pools, deploy(pools, "process", variables, entrypoint="look.py:look", pull_steps=[step]))
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "process-gpu", "--run-once"]
    said = run(*worker, cwd=tmp_path, env=environment(tmp_path, PREFECT_API_URL=pools))
    assert (tmp_path / "seen.json").exists(), said
    assert json.loads((tmp_path / "seen.json").read_text()) == {"REFIT_NUM_GPUS": "4", "REFIT_NUM_NODES": "1"}


# The servers on PostgreSQL

PASSWORDS = {"POSTGRES_PASSWORD": "one", "MLFLOW_DB_PASSWORD": "two", "PREFECT_DB_PASSWORD": "three"}


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL with the two databases."""

    binaries: Path
    port: int

    def answer(self, user: str, password: str, database: str, question: str) -> Any:
        import psycopg2

        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user=user, password=password, dbname=database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(question)
                return cursor.fetchone()[0]
        finally:
            connection.close()


def unprivileged() -> tuple[list[str], int]:
    """How to run a command as somebody whom PostgreSQL accepts, and who that is: it refuses to run as root."""
    if os.geteuid() != 0:
        return [], os.geteuid()
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = users.get("postgres") or users["nobody"]
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"], user.pw_uid


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    if not found:
        pytest.skip("no PostgreSQL here: the system package `postgresql` brings it")
    binaries, port = found[-1].parent, free_port()
    as_somebody, uid = unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="refit-postgres-"))  # pytest's own folders are closed to other users
    (folder / "password").write_text(PASSWORDS["POSTGRES_PASSWORD"])
    for path in (folder, folder / "password"):
        os.chown(path, uid, -1)
    env = environment(folder, PATH=f"{binaries}:{os.environ['PATH']}", LC_ALL="C.UTF-8")
    data, options = str(folder / "data"), f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -F"
    init = ["--auth=scram-sha-256", "--username=postgres", f"--pwfile={folder / 'password'}", "--no-sync"]
    run(*as_somebody, "initdb", f"--pgdata={data}", *init, cwd=folder, env=env)
    control = [*as_somebody, "pg_ctl", f"--pgdata={data}", "--wait"]
    log = str(folder / "log")
    subprocess.run(
        [*control, f"--options={options}", f"--log={log}", "start"], cwd=folder, env=env, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        superuser = {"POSTGRES_USER": "postgres", "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGPASSWORD": "one"}
        run("sh", str(DEPLOY / "postgres-init.sh"), cwd=folder, env=env | superuser | PASSWORDS)
        yield Postgres(binaries, port)
    finally:
        run(*control, "--mode=immediate", "stop", cwd=folder, env=env)
        shutil.rmtree(folder)


def filled(text: str) -> str:
    """A value of deploy/compose.yaml with the test's passwords in it."""
    return VARIABLE.sub(lambda found: PASSWORDS[found[1]], text)


def mlflow_on(postgres: Postgres, home: Path, port: int) -> AbstractContextManager[None]:
    """The MLflow server with the database of deploy/compose.yaml. Its accounts and its S3 are not in this test."""
    (backend,) = [option for option in SERVICES["mlflow"]["command"] if option.startswith("--backend-store-uri=")]
    settings = SERVICES["mlflow"]["environment"]
    database = {name: filled(settings[name]) for name in ("PGUSER", "PGPASSWORD", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION")}
    command = [
        sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", backend,
        f"--artifacts-destination={home / 'artifacts'}",
    ]  # fmt: skip
    env = environment(home, PGHOST="127.0.0.1", PGPORT=str(postgres.port), **database)
    return serving(command, f"http://127.0.0.1:{port}/health", home, env)


def prefect_on(postgres: Postgres, home: Path, port: int) -> AbstractContextManager[None]:
    """The Prefect server with the database of deploy/compose.yaml."""
    name = "PREFECT_API_DATABASE_CONNECTION_URL"
    address = filled(SERVICES["prefect"]["environment"][name]).replace("postgres:5432", f"127.0.0.1:{postgres.port}")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    env = environment(home, PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_UI_ENABLED="false", **{name: address})
    return serving(command, f"http://127.0.0.1:{port}/api/health", home, env)


@dataclass(frozen=True)
class Servers:
    mlflow: str
    prefect: str


@pytest.fixture(scope="module")
def servers(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both, started and stopped at the same time."""
    ports = free_port(), free_port()
    homes = tmp_path_factory.mktemp("mlflow"), tmp_path_factory.mktemp("prefect")
    mlflow, prefect = mlflow_on(postgres, homes[0], ports[0]), prefect_on(postgres, homes[1], ports[1])
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        for _ in pool.map(stack.enter_context, (mlflow, prefect)):
            pass
        yield Servers(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}/api")


def test_neither_server_enters_the_others_database(postgres: Postgres) -> None:
    import psycopg2

    assert postgres.answer("mlflow", "two", "mlflow", "SELECT current_user") == "mlflow"
    for user, password, database in (("mlflow", "two", "prefect"), ("prefect", "three", "mlflow")):
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            postgres.answer(user, password, database, "SELECT 1")
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        postgres.answer("mlflow", "three", "mlflow", "SELECT 1")


def test_a_candidate_is_registered_on_postgresql(
    postgres: Postgres, servers: Servers, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    first, again = register_candidate(), register_candidate()
    assert (first.is_new, again.is_new) == (True, False)
    found = client().get_model_version_by_alias(candidates(load_params().register), "candidate")
    assert found.version == first.version.version
    assert postgres.answer("mlflow", "two", "mlflow", "SELECT count(*) FROM model_versions") == 1


def test_a_flow_run_is_recorded_on_postgresql(postgres: Postgres, servers: Servers, tmp_path: Path) -> None:
    env = environment(tmp_path, PREFECT_API_URL=servers.prefect)
    run(sys.executable, "-c", "from prefect import flow\n@flow\ndef tiny(): pass\ntiny()", cwd=tmp_path, env=env)
    (recorded,) = post(servers.prefect, "flow_runs/filter")
    assert recorded["state"]["type"] == "COMPLETED"
    assert postgres.answer("prefect", "three", "prefect", "SELECT count(*) FROM flow_run") == 1


def test_a_backup_as_documented_brings_the_registry_back(
    postgres: Postgres, servers: Servers, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a database of its own that a promotion has left traces in; the server is up meanwhile."""
    text = (ROOT / "docs" / "team.md").read_text()
    (dump,) = re.findall(r"postgres (pg_dump .* mlflow) ", text)
    (restore,) = re.findall(r"`(pg_restore [^`]*)`", text)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.mlflow)
    version = register_candidate().version
    env = environment(trained, PATH=f"{postgres.binaries}:{os.environ['PATH']}", PGPASSWORD="one")
    env |= {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port)}
    saved = subprocess.run(dump.split(), env=env, check=True, capture_output=True).stdout
    client().delete_registered_model(candidates(load_params().register))
    with pytest.raises(MlflowException):
        client().get_registered_model(version.model_name)
    subprocess.run(restore.split(), env=env, check=True, input=saved)
    found = client().get_model_version_by_alias(version.model_name, "candidate")
    assert (found.version, found.tags["refit.content_digest"]) == (
        version.version, version.tags["refit.content_digest"],
    )  # fmt: skip
    assert postgres.answer("mlflow", "two", "mlflow", "SELECT count(*) FROM model_versions") == 1
