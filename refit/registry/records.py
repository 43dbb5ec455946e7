"""What is handed to MLflow and what comes back, as plain frozen values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..gate.comparison import Identity

CONTENT_TAG = "refit.content_digest"


@dataclass(frozen=True)
class Version:
    """A registered model version, as far as a person or a script wants to know."""

    model_name: str
    version: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    source: str = ""  # models:/<id of the logged model>

    @property
    def uri(self) -> str:
        return f"models:/{self.model_name}/{self.version}"

    @property
    def identity(self) -> Identity:
        """What names it: where it is, and what it is."""
        return Identity(
            uri=self.uri,
            version=self.version,
            content_digest=self.tags.get(CONTENT_TAG, ""),
            weights_sha256=self.tags.get("refit.weights_sha256", ""),
        )


@dataclass(frozen=True)
class Record:
    """All that a run leaves in MLflow."""

    name: str
    content_digest: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    history: Sequence[Mapping[str, object]]  # rows with `epoch` and measures
    metrics: Mapping[str, float]
    files: Mapping[str, Sequence[Path]]  # artifact folder -> files
    texts: Mapping[str, str]  # artifact path -> content
    weights: Path
    card: Path
    example: bytes  # an encoded example
    dataset: Mapping[str, str]  # name, digest, source
    description: str
    comparison_digest: str  # what it was compared with, and how
    verdict: Mapping[str, str]  # the gate's, as tags
