"""The effect `withdraw`: a reviewer says that there is to be no champion, once its alias is gone from the registry.

    withdraw("the product was stopped")

It moves nothing: MLflow lets only who manages a model delete an alias. It is the word of a reviewer, in the history
that the pipeline cannot write, without which a registry that names no champion is not believed (`releases.champion`).
"""

import dataclasses
import datetime

from refit.errors import RefusedError
from refit.gate import history
from refit.gate.history import Outcome
from refit.params import load_params
from refit.registry import releases, tracking
from refit.registry.tracking import CHAMPION


def withdraw(reason: str, is_dry_run: bool = False) -> Outcome:
    """Write down that there is no champion on purpose. May be repeated.

    Raises:
        RefusedError: there is a champion, somebody is deciding right now, or no reason is given.
    """
    if not reason.strip() or len(reason) > history.MOST_LETTERS:
        raise RefusedError(f'a decision needs a reason of at most {history.MOST_LETTERS:,} letters: --reason "…"')
    settings = load_params().register
    champion, past = tracking.version_with_alias(settings, CHAMPION), releases.moves(settings)
    if champion is not None:
        raise RefusedError(
            f"{champion.uri} is the champion; whoever manages {settings.model_name} in MLflow deletes the alias "
            f"{CHAMPION!r} there first, and what serves it stops (to go back to another release: `refit rollback`)"
        )
    if claims := history.claims(past, datetime.datetime.now(datetime.UTC)):
        raise RefusedError(f"{claims[0].who} is deciding about {settings.model_name} right now; see `refit history`")
    move = dataclasses.replace(
        releases.new_move(settings, "withdraw", reason, history.last_champion(past)), state="done"
    )
    if not is_dry_run:
        releases.write_move(settings, move)
    return Outcome(move.kind, None, move.from_version, None, "", "", move.reason, move.who, is_dry_run=is_dry_run)
