"""Texts: what a file is found to be, how it becomes tokens, what reads them, and the whole chain with a tiny BERT."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from safetensors.torch import load_file

from refit import paths
from refit.checkpoint import folder as folders
from refit.checkpoint import hub
from refit.data.duplicates import near_duplicates
from refit.data.rules import broken
from refit.data.sources import list_examples
from refit.errors import CheckpointError, DataError, ParamsError, WorkspaceError
from refit.modality.text import augment, duplicates, examples, files, rules, sample, settings
from refit.modality.text.preprocessing import Preprocessing, read_preprocessing
from refit.params import Params
from refit.registry import packaging
from tasks import fetch

from .conftest import ROOT, change_params
from .services import clone, dvc, environment, origin, refit, run
from .texts import BAD, CAUSAL, FAMILIES, GOOD, table_of_texts, texts, write_language_model

__all__ = ["origin"]  # a fixture

WAYS = settings.Finetune(max_tokens=24, pooling="auto", hide=0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def reviews(origin: Path, home: Path) -> tuple[Path, dict[str, str]]:
    """A clone that learns texts from a table, in which all stages have run."""
    folder, env = clone(origin, home / "project"), environment(home)
    write_language_model(folder / "base/tiny", "bert")
    pin = digest(folder / "base/tiny")
    rows = [(text, "good") for text in texts(150, GOOD, 0)] + [(text, "bad") for text in texts(150, BAD, 1)]
    (folder / "data").mkdir(exist_ok=True)
    pd.DataFrame([*rows, ("", "good"), ("Ã©tÃ©", "bad")], columns=["text", "label"]).to_csv(
        folder / "data/reviews.csv", index=False
    )
    changes = {
        "data.modality": "text", "data.source": "data/reviews.csv", "checkpoint.uri": "file:base/tiny",
        "checkpoint.sha256": pin, "finetune.model": "bert", "finetune.strategy": "lp_ft", "finetune.epochs": 8,
        "finetune.learning_rate": 0.003, "finetune.batch_size": 16, "finetune.layer_decay": 0.9,
        "text.finetune.max_tokens": 12, "text.finetune.hide": 0.1, "gate.slices": ["length", "script"],
        "register.model_name": "reviews", "register.experiment": "reviews",
    }  # fmt: skip
    change_params(folder / "params.yaml", changes)
    run("git", "add", "--all", cwd=folder, env=env)
    run("git", "commit", "--quiet", "--message", "texts", cwd=folder, env=env)
    dvc("repro", cwd=folder, env=env)
    run("git", "add", "--all", cwd=folder, env=env)
    run("git", "commit", "--quiet", "--message", "learned", cwd=folder, env=env)
    return folder, env


def test_texts_are_ingested_validated_and_learned(reviews: tuple[Path, dict[str, str]]) -> None:
    folder, _ = reviews
    summary = json.loads((folder / "reports/validation.json").read_text())
    assert summary["rules"]["empty"]["count"] == 1
    reasons = pd.read_parquet(folder / "data/rejected.parquet")["reason"]
    assert any("read as Windows-1252" in reason for reason in reasons)
    card = json.loads((folder / "models/model.json").read_text())
    assert (card["modality"], card["architecture"], card["preprocessing"]["pooling"]) == ("text", "bert", "first")
    assert card["pretrained"]["share"] == 1.0
    assert json.loads((folder / "metrics/evaluation.json").read_text())["accuracy"]["value"] > 0.9
    manifest = pd.read_parquet(folder / "data/manifest.parquet")
    accepted = pd.read_parquet(folder / "data/accepted.parquet")
    words = accepted["words"] + 2  # [CLS] and [SEP]
    cut = words[accepted["split"] == "train"] > 12
    assert f"tokens of the training examples: {(~cut).sum():,} all read, {cut.sum():,} cut at 12" in card["plan"]
    judged = json.loads((folder / "reports/evaluation.json").read_text())["slices"]
    assert judged["tokens"]["cut at 12"]["support"] == (words[accepted["split"] == "test"] > 12).sum()
    assert (set(judged["length"]), set(judged["script"])) == ({"short"}, {"latin"})
    assert "tokens: cut at 12" in (folder / "reports/evaluation.html").read_text()
    assert {"words", "length", "script"} <= set(manifest.columns)
    work = json.loads((folder / ".refit/live/work.json").read_text())
    assert work["rest_forwards"] > work["frozen_forwards"] > 0, "the frozen encoder ran once for each text"
    assert len(list((folder / ".refit/cache").glob("features-*"))) == 1, "the suspects are told by the same features"
    assert "train and val, by a linear classifier" in (folder / "reports/label_suspects.html").read_text()


def test_texts_are_registered_served_and_predicted(reviews: tuple[Path, dict[str, str]]) -> None:
    folder, env = reviews
    assert "candidate: models:/reviews-candidates/1" in refit("register", cwd=folder, env=env)
    (folder / "new.txt").write_text("a lovely and clever film")
    assert "new.txt\tgood" in refit("predict", "new.txt", cwd=folder, env=env)
    command = [sys.executable, "-m", "flows", "predict", "--value", "-", "--json", "--model", "candidate"]
    lines = "a fine film\nthe dull grey story\n"
    said = subprocess.run(command, cwd=folder, env=env, input=lines, capture_output=True, text=True, check=True)
    assert [(row["value"], row["label"]) for row in json.loads(said.stdout)] == [
        ("a fine film", "good"), ("the dull grey story", "bad"),
    ]  # fmt: skip
    code = (
        "import sys, mlflow, json\nmlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/reviews-candidates/1')\n"
        "print(model.input_example)\n"
        "print(model.predict({'text': ['a warm bright scene', 'it was stale and cold']})['label'].tolist())"
    )
    shown = run(sys.executable, "-c", code, cwd=folder, env=env)
    assert "['good', 'bad']" in shown
    required = {line.split("==")[0] for line in packaging._requirements("bert", "text")}
    assert ("transformers" in required, "torchvision" in required) == (True, False)


def test_who_reviews_texts_reads_of_no_images(reviews: tuple[Path, dict[str, str]]) -> None:
    folder, env = reviews
    refit("register", cwd=folder, env=env)
    refit("validate", "data/reviews.csv", "--reports", "judged", cwd=folder, env=env)
    pages = [file for room in ("reports", "judged") for file in (folder / room).iterdir() if file.suffix != ".csv"]
    assert {"validation.html", "evaluation.html", "label_suspects.html", "comparison.html", "comparison.md",
            "review.html", "changes.html", "validation.md"} <= {file.name for file in pages}  # fmt: skip
    said = {file.name: seen(file.read_text()) for file in pages if file.suffix in (".html", ".md")}
    said["review"] = refit("review", "1", cwd=folder, env=env)
    assert {name: OF_IMAGES.findall(text) for name, text in said.items() if OF_IMAGES.search(text)} == {}


OF_IMAGES = re.compile(r"(?<![a-z])(?:images?|pictures?|photos?|pixels?)(?![a-z])", re.IGNORECASE)


def seen(page: str) -> str:
    """What is read of a page, titles and alternative texts too."""
    told = re.findall(r'(?:title|alt|aria-label)="([^"]*)"', page)
    return " ".join([re.sub(r"<style.*?</style>|<[^>]*>|!\[[^)]*\)", " ", page, flags=re.DOTALL), *told])


def test_no_message_for_every_kind_of_example_speaks_of_images() -> None:
    about_images = {"Paste a part of another image. 0: never.", "images.csv"}  # of CutMix; of older versions
    found = {}
    for file in (path for storey in ("flows", "tasks", "refit") for path in (ROOT / storey).rglob("*.py")):
        if "refit/modality/image" in file.as_posix():
            continue
        tree = ast.parse(file.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings]
        said = [n.value for n in strings if isinstance(n.value, str) and OF_IMAGES.search(n.value)]
        found[file.relative_to(ROOT).as_posix()] = [text for text in said if text not in about_images]
    assert {file: said for file, said in found.items() if said} == {}


def test_a_version_is_made_again_to_the_last_bit(reviews: tuple[Path, dict[str, str]]) -> None:
    folder, env = reviews
    assert "IDENTICAL" in refit("reproduce", "candidate", cwd=folder, env=env)


def test_two_processes_killed_in_the_middle_and_one_that_goes_on_give_the_bytes_of_one(
    reviews: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    there, env = reviews
    found = []
    for name in ("whole", "killed"):
        folder = clone(there, tmp_path / name)
        shutil.copy(there / paths.ACCEPTED, folder / paths.ACCEPTED)
        for kept in (paths.UNPACKED, paths.BASE_CARD.parent):
            shutil.copytree(there / kept, folder / kept, dirs_exist_ok=True)
        change_params(folder / "params.yaml", {"finetune.shards": 2, "finetune.epochs": 3, "finetune.strategy": "full"})
        if name == "killed":
            kill_in_the_middle(folder, env | {"REFIT_PROCESSES": "2", "REFIT_STATE_SECONDS": "0"})
        said = run(sys.executable, "-m", "tasks.finetune", cwd=folder, env=env | {"REFIT_PROCESSES": "1"})
        assert ("going on after" in said) == (name == "killed")
        found.append([(folder / output).read_bytes() for output in (paths.MODEL_WEIGHTS, paths.MODEL_CARD)])
    assert found[0] == found[1]
    libraries = json.loads(found[0][1])["environment"]["libraries"]
    assert [library.split()[0] for library in libraries] == ["tokenizers", "transformers"]


def kill_in_the_middle(folder: Path, env: dict[str, str]) -> None:
    """SIGKILL for all processes of a training, as soon as it has saved a state."""
    command = [sys.executable, "-m", "tasks.finetune"]
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, start_new_session=True) as training:
        while not list((folder / paths.STATES).glob("*/state.safetensors")):
            assert training.poll() is None
            time.sleep(0.02)
        os.killpg(training.pid, signal.SIGKILL)
    assert not (folder / paths.MODEL_WEIGHTS).exists()


def digest(folder: Path) -> str:
    with folders.taken(folders.files_in(folder, settings.CHECKPOINT_FILES)) as copy:
        return folders.digest_of(copy)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, home: Path) -> tuple[str, Path, Preprocessing]:
    """A family, its weights as `fetch` keeps them, and what they bring along."""
    from refit.modality.text import weights

    folder = write_language_model(home / request.param, request.param)
    target = home / f"{request.param}.safetensors"
    described = weights.read_folder(folder, target)
    assert described.architecture == request.param
    return request.param, target, weights.preprocessing_for(described.preprocessing, WAYS)


def rows(preprocessing: Preprocessing, *said: str) -> np.ndarray:
    return np.stack([examples.prepare(text.encode(), preprocessing) for text in said])


def built(model: tuple[str, Path, Preprocessing]):
    import torch

    from refit.checkpoint.backbone import load_backbone
    from refit.modality.text import networks

    family, weights, preprocessing = model
    torch.manual_seed(1)
    network = networks.build_network(family, 3, 0.1, preprocessing).eval()
    loaded = load_backbone(network, load_file(weights), networks.head_parameters(network, 3), "text", "x", None, 1.0)
    assert (loaded.share, loaded.missing, loaded.unexpected) == (1.0, (), ())
    return network


def test_each_family_reads_its_own_weights_as_transformers_does(model: tuple[str, Path, Preprocessing]) -> None:
    import torch
    from transformers import AutoModel

    from refit.modality.text import networks

    family, weights, preprocessing = model
    network, folder = built(model), weights.with_suffix("")
    body = AutoModel.from_pretrained(folder).eval()
    prepared = rows(preprocessing, "the film is a fine story and it was warm", "dull film")
    with torch.inference_mode():
        together = network(networks.network_input(torch.from_numpy(prepared), preprocessing))
        for row, logits in zip(prepared, together, strict=True):
            tokens = torch.from_numpy(row[row >= 0]).long()[None]
            vectors = body(input_ids=tokens).last_hidden_state
            expected = network.head(vectors[:, -1 if family in CAUSAL else 0])[0]
            assert torch.allclose(logits, expected, atol=1e-5), "what stands behind a text changes nothing"


def test_each_family_has_its_layers_in_order(model: tuple[str, Path, Preprocessing]) -> None:
    import torch

    from refit.modality.text import networks

    network = built(model)
    groups = networks.layer_groups(network, networks.head_parameters(network, 3))
    assert len(groups) == 4, "embeddings, two blocks, the head"
    assert sorted(name for group in groups for name in group.parameters) == sorted(dict(network.named_parameters()))
    assert groups[-1].parameters == ("head.weight", "head.bias")
    prepared = torch.from_numpy(rows(model[2], "a fine film", "the dull story and a scene"))
    network.train()(networks.network_input(prepared, model[2])).square().sum().backward()
    learned = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learned == set(dict(network.named_parameters()))


def test_the_frozen_encoder_can_be_cut_off(model: tuple[str, Path, Preprocessing]) -> None:
    import torch

    from refit.modality.text import networks
    from refit.training import frozen

    network, preprocessing = built(model), model[2]
    sample = networks.network_input(torch.from_numpy(rows(preprocessing, "a fine film", "the story")), preprocessing)
    body = [name for name, _ in network.named_parameters() if not name.startswith("head.")]
    found = frozen.split(network, body, sample)
    assert found is not None
    features = found.prefix(sample)
    assert features.shape == (2, 32)
    dropped = found.suffix.train()(features)
    assert not torch.equal(dropped, found.suffix.eval()(features)), "the head's dropout stays with the head"


def test_features_of_a_text_are_the_same_in_any_company(home: Path) -> None:
    import torch

    from refit.modality.text import networks, weights
    from refit.training import frozen
    from refit.training.features import _Forward

    folder = write_language_model(home / "company", "bert")
    preprocessing = weights.preprocessing_for(weights.read_folder(folder, home / "c.safetensors").preprocessing, WAYS)
    network = built(("bert", home / "c.safetensors", preprocessing))
    prepared = rows(preprocessing, *texts(40, GOOD, 3))

    def features(chosen: np.ndarray) -> np.ndarray:
        from types import SimpleNamespace as Some

        held = Some(rows=Some(gather=lambda rows: prepared[chosen][rows]), keys=None)
        feed = Some(network_input=partial(networks.network_input, preprocessing=preprocessing))
        job = Some(device=torch.device("cpu"), precision="fp32", feed=feed)
        body = [name for name, _ in network.named_parameters() if not name.startswith("head.")]
        cut = frozen.split(network, body, feed.network_input(torch.from_numpy(prepared[:2])))
        work = Some(frozen_forwards=0)
        forward = _Forward(job, cut, held, 0, work, networks.extents(prepared[chosen]))
        return np.concatenate(list(forward(np.arange(len(chosen)))))

    some = np.array([7, 30, 2, 19, 11])
    assert (features(np.arange(40))[some] == features(some)).all()


def test_batches_have_texts_of_about_one_length() -> None:
    from types import SimpleNamespace as Some

    from refit.training.loop import epoch_order

    extents = np.random.default_rng(0).integers(3, 60, 1000)
    train = Some(keys=np.arange(1000, dtype=np.uint64), labels=np.zeros(1000, dtype=np.int64))
    settings = Some(class_balance="none")
    job = Some(seed=1, train=train, settings=settings, plan=Some(batch_size=16), train_extents=extents)
    orders = [epoch_order(job, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(1000))
        padded = sum(extents[order[start : start + 16]].max() * 16 for start in range(0, 992, 16))
        assert padded < 1.1 * extents.sum(), "at most a tenth is padding"
    assert (orders[0] != orders[1]).any()
    job.train_extents = None
    assert (epoch_order(job, 0) != orders[0]).any()


def tiny(**more: object) -> Preprocessing:
    """A tokenizer without a network."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2, "c": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    known = Preprocessing(tokenizer=tokenizer.to_str(), max_tokens=6, hidden_token=0, pooling="last", network={})
    return replace(known, **more)  # type: ignore[arg-type]


def test_a_page_shows_words_and_not_their_pieces() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    words = Tokenizer(WordPiece({"?": 0, "ortho": 1, "##normal": 2}, unk_token="?"))
    known = tiny(tokenizer=words.to_str())
    assert examples.picture(examples.prepare(b"orthonormal", known), known) == "“orthonormal”"


def test_a_text_becomes_a_row_of_tokens_and_back() -> None:
    row = examples.prepare("\ufeff a  b\r\nc ".encode(), tiny())
    assert (row.tolist(), row.dtype) == ([1, 2, 3, -1, -1, -1, -1], np.int32)
    assert examples.picture(row, tiny()) == "“a b c”"
    assert examples.prepare(b"a b c a b c a b", tiny()).tolist() == [1, 2, 3, 1, 2, 3, examples.MORE]
    assert examples.request(" é ".encode()) == "é"
    assert examples.parse("é") == "é".encode()
    assert examples.parse(b"x") == b"x"
    with pytest.raises(ValueError, match="a text is expected, found int"):
        examples.parse(3)


def test_a_text_that_is_cut_is_known_and_read_like_one_that_fits() -> None:
    import torch

    from refit.modality.text import networks

    prepared = rows(tiny(), "a b c a b c", "a b c a b c a", "a")
    assert examples.slices(prepared, tiny())["tokens"].tolist() == ["all read", "cut at 6", "all read"]
    assert networks.extents(prepared).tolist() == [6, 6, 1]
    fed = networks.network_input(torch.from_numpy(prepared), tiny())
    assert fed.shape == (3, 6)
    assert fed[0].tolist() == fed[1].tolist()


def test_a_run_of_tokens_is_hidden_but_for_the_ends() -> None:
    import torch

    from refit.modality.text import networks

    held = torch.tensor([[2, 5, 6, 7, 8, 3, -1, -1], [2, 5, 3, -1, -1, -1, -1, -1]], dtype=torch.int32)
    for draw in (0.0, 0.5, 0.999):
        changed = augment.augment(held, torch.tensor([[0.999, draw]] * 2), replace(WAYS, hide=0.6))
        assert (changed[0] == networks.HIDDEN).sum() == 2
        assert changed[:, 0].tolist() == [2, 2]
        assert (changed[0, 5], changed[1, 2]) == (3, 3)
        assert ((changed == networks.HIDDEN) | (changed == held)).all()
        fed = networks.network_input(changed, tiny(hidden_token=9))
        assert fed.shape == (2, 6)
        assert (fed[0] == 9).sum() == 2
    assert augment.augment(held, torch.zeros(2, 2), WAYS) is held


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty text"),
        (b" \n\t", "empty text"),
        ("größer".encode("utf-16"), "it is UTF-16"),
        ("größer als".encode("utf-16-le"), "probably UTF-16 without its mark"),
        ("größer".encode("utf-32"), "it is UTF-32"),
        ("größer".encode("cp1252"), "probably Windows-1252"),
        ("ganz schön".encode().decode("cp1252").encode(), "UTF-8 that was read as Windows-1252"),
        ("isn’t it".encode().decode("cp1252").encode(), "UTF-8 that was read as Windows-1252"),
        (b"%PDF-1.4 \xff\xfe", "it is no text"),
        (b"PK\x03\x04\x00\x00\xff\xff\xff\xff", "it is no text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    found = files.inspect(tmp_path / "x.txt")
    assert said in (found.error or "")
    assert found.words == 0


def test_a_text_is_inspected(tmp_path: Path) -> None:
    def inspect(text: str) -> files.TextInspection:
        (tmp_path / "x.txt").write_text(text)
        return files.inspect(tmp_path / "x.txt")

    found = inspect("Ça va, <b>toi</b>?\x07")
    assert found.error is None
    assert (found.words, found.length, found.script, found.control_characters, found.html_tags) == (
        13, "short", "latin", 1, 2,
    )  # fmt: skip
    assert [inspect(text).script for text in ("привет мир", "日本語です", "12 34")] == ["cyrillic", "cjk", "none"]
    assert inspect("a" + " b" * 70).length == "long"
    assert inspect("A fine film!").content_sha256 != inspect("a fine film").content_sha256
    assert inspect("A fine, FILM!").signature == inspect("a  fine film").signature
    assert inspect("Cafe\u0301\r\n").content_sha256 == inspect("Café").content_sha256
    assert inspect("Â£5 and naïve").error is None, "not all of it can be read as UTF-8"
    assert files.inspect(tmp_path).error == "not a regular file"


def found_in(source: Path, tmp_path: Path) -> list[tuple[str, str, str | None, str | None]]:
    listed = list_examples(source, tmp_path / "unpacked", "text")
    return [(one.path.read_text() if one.error is None else "", one.label, one.split, one.error) for one in listed]


ROWS = [{"text": "a film", "label": "good"}, {"text": "null", "label": "1"}]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_table_may_hold_texts(tmp_path: Path, suffix: str) -> None:
    frame, file = pd.DataFrame(ROWS), tmp_path / f"reviews.{suffix}"
    if suffix == "csv":
        frame.to_csv(file, index=False)
    elif suffix == "parquet":
        frame.to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert found_in(file, tmp_path) == [("a film", "good", None, None), ("null", "1", None, None)]


def test_a_folder_may_have_a_table_for_each_split_or_files_by_class(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_text(f"text,label\nfrom {split},good\n")
    expected = [
        (f"from {name}", "good", split, None) for name, split in (("dev", "val"), ("test", "test"), ("train", "train"))
    ]
    assert found_in(folder, tmp_path) == expected
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"reviews/{file.name}")
        packed.writestr("reviews/labels.jsonl", '{"text": "packed", "label": "good", "split": "test"}\n')
    assert found_in(tmp_path / "reviews.zip", tmp_path / "zip") == [("packed", "good", "test", None)]
    for label in ("good", "bad"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "1.txt").write_text(label)
    assert [(text, label) for text, label, *_ in found_in(tmp_path / "classes", tmp_path)] == [
        ("bad", "bad"),
        ("good", "good"),
    ]


TOLD = {
    "en": "The film is a warm and clever story about two friends who meet again after many years.",
    "de": "Der Film ist eine warme und kluge Geschichte von zwei Freunden, die sich nach Jahren wiedersehen.",
    "fr": "Le film est une histoire chaleureuse et intelligente de deux amis qui se retrouvent des années plus tard.",
}


def test_the_language_of_a_text_is_told_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def language(text: str) -> str:
        (tmp_path / "text").write_text(text)
        return files.inspect(tmp_path / "text").language

    assert {name: language(text) for name, text in TOLD.items()} == {name: name for name in TOLD}
    assert (language("Ein kurzer Satz."), language("1 2 3 4 5 6 7 8 9 10 11 12")) == ("", "")
    files._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert language(TOLD["de"]) == "", "texts are validated without the extra `text`"
    files._identifier.cache_clear()


def test_a_text_in_another_language_than_most_is_found(edit_params: Callable[..., Params]) -> None:
    validate = edit_params(**TEXT).of_modality.validate
    assert validate.rules.language == "warn"
    told = pd.DataFrame({"language": ["en", "", "fr", "en", "", ""], "script": "latin", "words": 20})
    schema = pa.DataFrameSchema(rules.row_columns(validate))
    found = broken(told.assign(control_characters=0, html_tags=0), schema)
    assert found[["row", "rule", "reason"]].to_numpy().tolist() == [
        [2, "language", "another language than most texts: language is fr"]
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_an_example_of_a_table_is_called_by_its_id(tmp_path: Path, suffix: str) -> None:
    ids = ["r-1", "../../up", "r-1", "", "été 2", "x" * 300, "x" * 301, "..", ".hidden", "7"]
    table = pd.DataFrame({"id": ids, "text": [f"text {number}" for number in range(10)], "label": "good"})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    listed = list_examples(tmp_path / f"t.{suffix}", tmp_path / "unpacked", "text")
    usable = {example.path: example.path.read_text() for example in listed if example.error is None}
    assert sorted(usable.values()) == [f"text {number}" for number in (0, 1, 4, 5, 6, 7, 8, 9)]
    assert {path.parent for path in usable} == {tmp_path / "unpacked/rows" / f"t.{suffix}"}
    names = {text: path.name for path, text in usable.items()}
    assert [names[f"text {n}"] for n in (0, 1, 4, 7, 8, 9)] == [
        "r-1.txt", "%2E%2E%2F%2E%2E%2Fup.txt", "été 2.txt", "%2E%2E.txt", "%2Ehidden.txt", "7.txt",
    ]  # fmt: skip
    faulty = {(example.error, example.rule) for example in listed if example.error}
    assert faulty == {("row 3: the id 'r-1' is that of row 1", "id"), ("row 4: no id", "id")}
    (tmp_path / "p.csv").write_text("id,path,label\n1,x.txt,good\n1,y.txt,good\n")
    assert not any(example.error for example in list_examples(tmp_path / "p.csv", tmp_path / "unpacked", "text"))


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = [{"text": None, "label": "x"}, {"text": "a", "label": None}, {"text": "b", "label": "x", "split": "tset"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = [error for *_, error in found_in(tmp_path / "t.jsonl", tmp_path)]
    assert sorted(filter(None, errors)) == [
        "row 1: no example", "row 2: no label", "row 3: split 'tset' is not one of train, val, test",
    ]  # fmt: skip
    (tmp_path / "u.csv").write_text("texts,label\na,b\n")
    with pytest.raises(DataError, match="expected text, label and optionally split"):
        list_examples(tmp_path / "u.csv", tmp_path / "u", "text")
    (tmp_path / "v.jsonl").write_text("{no json")
    with pytest.raises(DataError, match=r"v.jsonl cannot be read as a table"):
        list_examples(tmp_path / "v.jsonl", tmp_path / "u", "text")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_language_model(tmp_path / "bert", "bert")


@pytest.fixture
def in_project_child(project: Path) -> None:
    """The child process finds the packages in the current folder, as in a real project."""
    (project / "refit").symlink_to(ROOT / "refit")


TEXT = {"data__modality": "text", "finetune__model": "bert", "gate__slices": ["length"]}


@pytest.mark.usefixtures("in_project_child")
def test_one_digest_pins_a_folder_an_archive_and_what_is_read_of_them(
    project: Path, bert: Path, edit_params: Callable[..., Params]
) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"a pickle, which is never read")
    with zipfile.ZipFile(project / "bert.zip", "w") as packed:
        for file in bert.iterdir():
            packed.write(file, f"around/it/{file.name}")
    pin = digest(bert)
    for uri in (f"file:{bert}", "file:bert.zip"):
        edit_params(**TEXT, checkpoint__uri=uri, checkpoint__sha256=pin)
        fetch.main()
        card = json.loads(paths.BASE_CARD.read_text())
        assert (card["format"], card["source_sha256"], card["architecture"]) == ("folder", pin, "bert")
        assert read_preprocessing(card["preprocessing"], "x").network["hidden_size"] == 32
    kept = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(kept | {"hidden_act": "relu"}))
    edit_params(checkpoint__uri=f"file:{bert}")
    with pytest.raises(CheckpointError, match=f"but `checkpoint.sha256` in params.yaml asks for {pin}"):
        fetch.main()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "t5"}, "names the family 't5', which is none of bert"),
        ({"model_type": "own", "auto_map": {"AutoModel": "evil.Model"}}, "code of a repository is never run"),
        ({"quantization_config": {}}, "a quantized network"),
        ({"num_hidden_layers": 3}, "lack 16 tensors of the network that config.json describes"),
        ({"hidden_size": 33}, "config.json describes no network|cannot be loaded"),
        ({"vocab_size": 7}, "the tokenizer has 29 tokens, and the network knows 7"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(bert: Path, change: dict[str, object], said: str) -> None:
    from refit.modality.text import weights

    kept = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(kept | change))
    with pytest.raises(CheckpointError, match=said):
        weights.read_folder(bert, bert / "out")


def test_missing_files_are_named(bert: Path) -> None:
    from refit.modality.text import weights

    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights cannot be loaded"):
        weights.read_folder(bert, bert / "out")
    (bert / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        weights.read_folder(bert, bert / "out")
    (bert / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json of the checkpoint is damaged"):
        weights.read_folder(bert, bert / "out")
    with pytest.raises(CheckpointError, match=r"has none of the files config.json"):
        folders.files_in(bert.parent / "nothing", settings.CHECKPOINT_FILES)


def test_a_repository_of_a_hub_is_fetched_at_its_commit(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(address: str, *_: object) -> Path:
        asked.append(address)
        name = address.rpartition("/")[2]
        if "/api/" in address:
            siblings = [{"rfilename": path.name} for path in sorted(bert.iterdir())] + [{"rfilename": "evil.py"}]
            (tmp_path / "listing").write_text(json.dumps({"sha": "c0ffee", "siblings": siblings}))
            return tmp_path / "listing"
        return bert / name

    monkeypatch.setattr(hub, "download", download)
    found, version = hub.fetch_repository("hf:owner/repo@v1", settings.CHECKPOINT_FILES, is_pinned=True)
    assert version == "hf:owner/repo@c0ffee"
    assert sorted(found) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert asked[0].endswith("/api/models/owner/repo/revision/v1")
    assert all("/resolve/c0ffee/" in address for address in asked[1:])
    with pytest.raises(CheckpointError, match="has none of the files"):
        hub.fetch_repository("hf:owner/repo", ["nothing"], is_pinned=True)


def test_what_params_may_say_of_texts(edit_params: Callable[..., Params]) -> None:
    pin = "0" * 64
    assert (
        edit_params(**TEXT, checkpoint__uri="hf:owner/repo@main", checkpoint__sha256=pin).of_modality.finetune.hide == 0
    )
    for changes, said in (
        ({"checkpoint__uri": "scratch", "checkpoint__sha256": None}, "brings no tokenizer"),
        ({"finetune__mixup": 0.2}, "`finetune.mixup` has no meaning for `data.modality: text`"),
        ({"finetune__model": "resnet18"}, "`finetune.model` is 'resnet18', which is not known"),
        ({"text__validate__min_words": 9000}, "`text.validate.min_words` is larger"),
    ):
        with pytest.raises(ParamsError, match=said):
            edit_params(**changes)
        edit_params_back = {"checkpoint__uri": "hf:owner/repo", "checkpoint__sha256": pin, "finetune__mixup": 0.0}
        edit_params(**edit_params_back, finetune__model="bert", text__validate__min_words=1)
    edit_params(data__modality="image", finetune__model="resnet18", gate__slices=[], checkpoint__uri="https://a/b")
    with pytest.raises(ParamsError, match=r"write hf:<owner>/<repo>\[@<revision>\]/<file>"):
        edit_params(checkpoint__uri="hf:owner/repo@main")


def test_more_tokens_than_the_network_reads_are_refused(bert: Path) -> None:
    from refit.modality.text import networks, weights

    described = weights.read_folder(bert, bert / "out")
    known = described.preprocessing
    with pytest.raises(ParamsError, match="is 64, and the network reads 40 at most"):
        weights.preprocessing_for(known, replace(WAYS, max_tokens=64))
    with pytest.raises(ParamsError, match="brings no tokenizer"):
        weights.preprocessing_for(None, WAYS)
    assert weights.preprocessing_for(known, replace(WAYS, pooling="mean")).pooling == "mean"
    with pytest.raises(
        ParamsError, match=r"`finetune\.model` is 'gpt2', and the base checkpoint is of the family 'bert'"
    ):
        networks.build_network("gpt2", 2, 0.0, weights.preprocessing_for(known, WAYS))
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert weights.read_folder(bert, bert / "out").preprocessing["pooling"] == "mean"  # type: ignore[index]


def test_a_network_of_ones_own_cannot_read_texts() -> None:
    from refit.modality.text import networks

    with pytest.raises(ParamsError, match=r"nets:build` names a network of yours, .* name its family, such as bert"):
        networks.build_network("nets:build", 2)


def shared(one: str, other: str) -> float:
    """Exactly, what a signature estimates."""
    runs = [{plain[i : i + 5] for i in range(len(plain) - 4)} for plain in map(plain_of, (one, other))]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def plain_of(text: str) -> str:
    return " ".join(files._plain_words(text)).ljust(5)


EDITS: dict[str, tuple[Callable[[list[str]], list[str]], float]] = {
    "in capitals, without signs": (lambda words: re.sub(r"[^\w\s-]", "", " ".join(words)).upper().split(), 0.97),
    "with a tag around it": (lambda words: ["<p>", *words, "</p>"], 0.97),
    "a letter changed": (lambda words: [*words[:4], "x" + words[4][1:], *words[5:]], 0.97),
    "a word left out": (lambda words: [*words[:3], *words[4:]], 0.95),
    "its end cut off": (lambda words: words[: len(words) * 9 // 10], 0.95),
    "a sentence added": (lambda words: [*words, "Read", "more."], 0.97),
}
"""Of texts of 14 words and more: what is done to a copy, and how many are found at least."""


def test_edited_copies_are_found_and_others_are_not() -> None:
    said = dict.fromkeys(text for text, _ in sample.prose("scikit-learn", "sklearn") if len(text.split()) >= 14)
    originals = list(said)[:300]
    signatures = signed(originals)
    alike = near_duplicates(signatures, duplicates)
    assert all(shared(originals[one], originals[other]) > 0.55 for one, other in alike)
    for edit, (change, least) in EDITS.items():
        copies = signed([" ".join(change(text.split())) for text in originals])
        pairs = near_duplicates(np.concatenate([signatures, copies]), duplicates)
        found = {(one, other - len(originals)) for one, other in pairs.tolist()}
        recall = np.mean([(number, number) in found for number in range(len(originals))])
        assert recall >= least, edit
    unlike = signed(["nothing of this kind is said anywhere else", "quite another sentence about the weather of today"])
    assert len(near_duplicates(np.concatenate([signatures, unlike]), duplicates)) == len(alike)


def signed(some: list[str]) -> np.ndarray:
    return np.stack([np.frombuffer(files.signature_of(text), dtype=np.uint8) for text in some])


def test_a_signature_is_the_same_everywhere_and_bounded() -> None:
    assert files.signature_of("A fine film").hex()[:16] == "376a96756fcd8087"
    assert files.signature_of("x") != files.signature_of("y")
    assert len(files.signature_of("a word " * 100_000)) == 2 * files.NUM_HASHES


def test_without_the_extra_it_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(WorkspaceError, match=r"texts need the extra `text` of Refit: `uv pip install .*\[text\]'`"):
        examples.prepare(
            b"a text", Preprocessing(tokenizer="{}", max_tokens=9, hidden_token=0, pooling="last", network={})
        )


def test_nothing_outside_of_the_room_knows_texts() -> None:
    for file in (path for storey in ("flows", "tasks", "refit") for path in (ROOT / storey).rglob("*.py")):
        if "refit/modality/text" not in file.as_posix():
            source = file.read_text()
            assert "modality.text" not in source, file
            assert 'modality == "' not in source, file


def test_a_table_of_texts_is_judged_by_a_projects_rules(project: Path) -> None:
    from flows.cli.folder import validate_folder

    source = table_of_texts(project)
    table = pd.read_csv(source, keep_default_na=False)
    table.assign(id=[f"r{row}" for row in range(242)] + ["r0"]).to_csv(source, index=False)
    summary = validate_folder(source, project, project / "reports")
    counts = {name: (rule.policy, rule.count) for name, rule in summary.rules.items()}
    assert counts == {"empty": ("reject", 1), "id": ("reject", 1), "script": ("warn", 1)}
    table.assign(id=[f"r{row}" for row in range(243)]).to_csv(source, index=False)
    summary = validate_folder(source, project, project / "reports")
    counts = {name: (rule.policy, rule.count) for name, rule in summary.rules.items()}
    assert counts == {"empty": ("reject", 1), "script": ("warn", 1), "leak": ("reject", 1)}
    assert (summary.num_examples, summary.num_accepted) == (243, 241)
    rejected = pd.read_csv(project / "reports/rejected.csv").set_index("rule")
    assert "leak: a near-duplicate of test" in rejected.loc["leak", "reason"]
    assert rejected.loc["leak", "twin"].endswith("/r10.txt")
