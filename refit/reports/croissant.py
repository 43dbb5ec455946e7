"""The accepted examples as Croissant, the format in which catalogues and loaders describe data sets.

    description = croissant(accepted, "photos", "ImageObject", digest, summary)

JSON-LD of Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html). It lies beside the table that
it describes. It has no date and no license: neither follows from the data. Whoever publishes the set adds them.
"""

from collections.abc import Mapping

import pandas as pd

from ..data.summary import ValidationSummary
from ..params import SPLITS

_OF_CROISSANT = """
    citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isLiveDataset
    jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField
    transform
""".split()
_CONTEXT: dict[str, object] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _OF_CROISSANT},
}
"""The one that the specification asks for."""

_TABLE = "accepted.parquet"
_ABOUT = {
    "path": "the file, from the project's folder (absolute where it lies elsewhere)",
    "label": "the class",
    "split": "train, val or test",
    "sha256": "of the file's bytes",
    "content_sha256": "of what it says, decoded",
    "bytes": "size of the file",
    "group": "what stays in one split (a patient, a device), or empty",
}


def croissant(
    accepted: pd.DataFrame, name: str, kind: str, table_sha256: str, summary: ValidationSummary
) -> dict[str, object]:
    """The description, for a file beside accepted.parquet.

    Args:
        accepted: the table.
        name: of the set.
        kind: schema.org's name of what an example is.
        table_sha256: of accepted.parquet.
    """
    labels = sorted(summary.classes)
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"{len(accepted):,} examples ({kind}) of {len(labels):,} classes, as validated by Refit.",
        "identifier": summary.data_digest,
        "version": f"1.0.0+{summary.data_digest[:12]}",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _TABLE,
                "name": _TABLE,
                "description": "One row for each example.",
                "contentUrl": _TABLE,
                "encodingFormat": "application/x-parquet",
                "sha256": table_sha256,
            }
        ],
        "recordSet": [
            _listed("splits", "cr:Split", list(SPLITS)),
            _listed("labels", "sc:Enumeration", labels),
            {
                "@type": "cr:RecordSet",
                "@id": "examples",
                "name": "examples",
                "description": f"The accepted examples. Each file is an {kind} of schema.org.",
                "key": {"@id": "examples/path"},
                "field": [_field(str(column), accepted[column]) for column in accepted.columns],
            },
        ],
    }


def _listed(name: str, kind: str, values: list[str]) -> dict[str, object]:
    """A set of names that a column refers to."""
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "dataType": kind,
        "key": {"@id": f"{name}/name"},
        "field": [{"@type": "cr:Field", "@id": f"{name}/name", "name": "name", "dataType": "sc:Text"}],
        "data": [{f"{name}/name": value} for value in values],
    }


def _field(column: str, values: pd.Series) -> dict[str, object]:
    kinds: Mapping[str, str] = {"i": "sc:Integer", "u": "sc:Integer", "f": "sc:Float", "b": "sc:Boolean"}
    references = {"split": "splits/name", "label": "labels/name"}
    return {
        "@type": "cr:Field",
        "@id": f"examples/{column}",
        "name": column,
        "dataType": kinds.get(values.dtype.kind, "sc:Text"),
        "source": {"fileObject": {"@id": _TABLE}, "extract": {"column": column}},
        **({"description": _ABOUT[column]} if column in _ABOUT else {}),
        **({"references": {"field": {"@id": references[column]}}} if column in references else {}),
    }
