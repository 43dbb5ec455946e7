"""`python -m refit.params` writes params.schema.json."""

from ..files import publish_text
from ..paths import PARAMS_SCHEMA
from . import schema

publish_text(PARAMS_SCHEMA, schema())
