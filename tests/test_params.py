"""params.yaml: every mistake is named, with what is allowed."""

import json
import re
from pathlib import Path

import pytest

from refit.errors import ParamsError
from refit.params import as_dict, load_params, moves, read_yaml, schema, without_credentials
from refit.paths import PARAMS_SCHEMA

from .conftest import ROOT, change_params


def test_the_shipped_params_load_and_are_frozen(project: Path) -> None:
    params = load_params()
    assert params.finetune.model == "shufflenet_v2_x0_5"
    with pytest.raises(AttributeError):
        params.seed = 1  # type: ignore[misc]


def test_the_schema_in_the_repository_is_that_of_the_code() -> None:
    assert (ROOT / PARAMS_SCHEMA).read_text() == schema(), "run `python -m refit.params`"
    assert (ROOT / "params.yaml").read_text().splitlines()[0].endswith(f"$schema={PARAMS_SCHEMA}")
    descriptions = json.loads(schema())["$defs"]["Finetune"]["properties"]
    assert "AdamW" in descriptions["learning_rate"]["description"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("finetune.learning_rte", 0.1, "unknown key `finetune.learning_rte`; did you mean `learning_rate`?"),
        ("image.finetune.augment.flip", True, "unknown key `image.finetune.augment.flip`"),
        ("finetun", {}, "unknown key `finetun`; did you mean `finetune`?"),
        (
            "finetune.model",
            "resnet-18",
            "`finetune.model` is 'resnet-18', which is not known; did you mean `resnet18`?",
        ),
        ("finetune.strategy", "hed", "did you mean `head`?; allowed: auto, head, lp_ft, staged, full"),
        ("finetune.epochs", 0, "`finetune.epochs` is 0, it should be greater than or equal to 1"),
        ("finetune.epochs", 2.5, "`finetune.epochs` is 2.5, it should be a valid integer"),
        ("finetune.learning_rate", "fast", "`finetune.learning_rate` is 'fast', it should be a valid number, or auto"),
        ("finetune.learning_rate", 2.0, "less than or equal to 1"),
        ("seed", True, "`seed` is True, it should be a valid integer"),
        ("seed", -1, "greater than or equal to 0"),
        ("data.test_fraction", 1.0, "less than 1"),
        ("data.modality", "sound", "allowed: image, text"),
        ("data", 3, "`data` must be a section with keys, found 3"),
        ("image.validate.modes", ["RGB", "HSV"], "`image.validate.modes.1` is 'HSV', which is not known"),
        ("validate.labels", ["cat"], "at least two different labels"),
        ("image.validate.min_side", 30000, "`image.validate.min_side` is larger than `image.validate.max_side`"),
        ("checkpoint.sha256", "abc", "`checkpoint.sha256` is 'abc', it should match pattern"),
        (
            "checkpoint.uri",
            "ftp://host/x",
            "'ftp://host/x'; allowed: torchvision:<weights name>, https://<address>, s3://",
        ),
        ("checkpoint.uri", "hf:resnet18", "write hf:<owner>/<repo>[@<revision>]/<file>"),
        ("checkpoint.uri", "hf:owner/repo@main", "write hf:<owner>/<repo>[@<revision>]/<file>"),
        ("checkpoint.uri", "models:/digits", "write models:/<name>/<version> or models:/<name>@champion"),
        ("checkpoint.uri", "s3://bucket", "write s3://<bucket>/<key>"),
        ("checkpoint.uri", "s3://key:secret@bucket/x", "holds a user or password, which would be kept in git"),
        ("checkpoint.min_loaded", 0.0, "`checkpoint.min_loaded` is 0.0, it should be greater than 0"),
        ("register.model_name", "a/b", "`register.model_name`"),
        ("register.tracking_uri", "http://me:secret@host", "MLFLOW_TRACKING_URI"),
        ("register.tracking_uri", "postgresql://secret@host/db", "MLFLOW_TRACKING_URI"),
        ("checkpoint.uri", "https://me:secret@host/x", "`checkpoint.uri` holds a user or password"),
        (
            "data.source",
            "s3://bucket/photos/",
            "`uv pip install --python .venv dvc-s3`, then `dvc import-url s3://bucket/photos/ data/photos`, "
            "and set `data.source: data/photos`",
        ),
        (
            "data.source",
            "https://me:secret@host/photos.zip?signature=secret",
            "must be a path: `dvc import-url https://host/photos.zip data/photos.zip`, and set",
        ),
        ("data.source", "file:///srv/photos", "`data.source` is 'file:///srv/photos'; write the path alone"),
    ],
)
def test_a_mistake_is_named(project: Path, key: str, value: object, expected: str) -> None:
    change_params(project / "params.yaml", {key: value})
    with pytest.raises(ParamsError) as caught:
        load_params()
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_label_is_not_allowed_and_given_up_at_once(project: Path) -> None:
    change_params(project / "params.yaml", {"validate.labels": ["ant", "eel"], "validate.retired_labels": ["eel"]})
    with pytest.raises(ParamsError, match=r"`validate\.labels` allows eel, which `validate\.retired_labels` gives up"):
        load_params()


def test_all_mistakes_are_reported_together(project: Path) -> None:
    change_params(project / "params.yaml", {"finetune.epochs": 0, "finetune.batch_size": 1, "sed": 1})
    with pytest.raises(ParamsError) as caught:
        load_params()
    for key in ("finetune.epochs", "finetune.batch_size", "`sed`"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint.uri": "scratch", "checkpoint.sha256": "0" * 64, "image.finetune.size": 32}, "no effect"),
        ({"checkpoint.uri": "scratch", "finetune.strategy": "head", "image.finetune.size": 32}, "random weights"),
        ({"checkpoint.uri": "scratch", "checkpoint.key": "ema", "image.finetune.size": 32}, "no effect"),
        ({"checkpoint.uri": "scratch", "checkpoint.sha256": None}, "`image.finetune.size` must be a number"),
        ({"finetune.shards": 3}, "a power of two"),
        ({"finetune.shards": 4, "finetune.batch_size": 6}, "at least twice `finetune.shards`"),
        ({"finetune.strategy": "head", "finetune.mixup": 0.2}, "`finetune.mixup` has no effect"),
        ({"finetune.views": 3}, "`finetune.views` has no effect"),
        ({"data.test_fraction": 0.6, "data.val_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    project: Path, changes: dict[str, object], expected: str
) -> None:
    change_params(project / "params.yaml", changes)
    with pytest.raises(ParamsError, match=expected):
        load_params()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "duplicate key"),
        ("seed: [1\n", "not valid YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("", "must hold sections"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ],
)
def test_a_malformed_file_is_one_line(project: Path, text: str, expected: str) -> None:
    (project / "params.yaml").write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_key_are_named(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"  batch_size: .*\n", "", text))
    with pytest.raises(ParamsError, match=r"`finetune\.batch_size` is missing"):
        load_params()
    (project / "params.yaml").unlink()
    with pytest.raises(ParamsError, match="is missing; run this in the project's root folder"):
        load_params()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:80/a/b@c?token=secret#x", "https://host:80/a/b@c"),
        ("postgresql+psycopg2://me:s@cret@host/db?password=secret", "postgresql+psycopg2://host/db"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("file:what?#.safetensors", "file:what?#.safetensors"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize("page", ["README.md", "docs/own-data.md"])
def test_the_edits_that_the_documentation_shows_work_as_they_are(project: Path, page: str) -> None:
    text = (ROOT / page).read_text().split("```yaml\n", 1)[1].split("```", 1)[0]
    (project / "edits.yaml").write_text(text)
    edits = read_yaml(project / "edits.yaml")
    change_params(
        project / "params.yaml", {f"{name}.{key}": value for name, keys in edits.items() for key, value in keys.items()}
    )
    params = load_params()
    assert params.checkpoint.uri.startswith("torchvision:")
    assert params.checkpoint.sha256 is None, "the pin of the embedded checkpoint would refuse it"


def test_numbers_are_read_as_dvc_reads_them(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("weight_decay: 0.05", "weight_decay: 1e-3"))
    assert load_params().finetune.weight_decay == 0.001
    assert as_dict(load_params())["finetune"]["weight_decay"] == 0.001


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/digits@champion", True), ("models:/digits/3", False), ("hf:a/b/c", True), ("hf:a/b@main/c", True),
        (f"hf:a/b@{'0' * 40}/c", False), ("file:a@b", False), ("https://a/b@c", False),
    ],
)  # fmt: skip
def test_an_address_that_moves_is_known_as_such(uri: str, expected: bool) -> None:
    assert moves(uri) is expected
