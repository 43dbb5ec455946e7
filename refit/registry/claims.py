"""One content, one version: who registers a content claims it in the registry first. (Inside `tracking.connected`.)

    with claimed(client, "pets-candidates", digest) as renew:
        ...                             look whether it is there; log what is to be registered
        renew()                         just before the version is created

MLflow has no unique key that fits: a version's number is the server's choice, and tags may be doubled. So each process
writes a claim, a tag of the registered model, and then reads the claims of all: of two, whichever reads last sees the
other's. Who sees another claim withdraws, waits a while, and looks again. A claim that did not change while somebody
watched it for a quarter of an hour is taken for one of a dead process; no clock is compared with another machine's.
What is left: a process that stands still for so long between `renew` and its next call may still make a second version.
"""

import hashlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..errors import TrackingUnavailableError
from ..locks import EFFECTS_LOCK

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "refit.claim."
_SECONDS_A_CLAIM_LIVES = 15 * 60.0
_SECONDS_BETWEEN_LOOKS = (0.5, 2.0)
_SECONDS_TO_WITHDRAW = 3.0


@contextmanager
def claimed(client: "MlflowClient", model: str, digest: str) -> Iterator[Callable[[], None]]:
    """Be the only one that registers a content; wait while somebody else does. Needs `locks.one_at_a_time`.

    Args:
        model: name of the registered model, which exists.
        digest: of the content.

    Yields:
        What renews the claim. Raises TrackingUnavailableError if somebody took this process for dead, and took over.
    """
    from mlflow.exceptions import MlflowException

    claim = _Claim(client, model, digest)
    try:
        claim.make()
        yield claim.renew
        claim.bury()
    finally:
        with suppress(MlflowException, OSError):  # of a server that is away, which is being reported already
            claim.withdraw()


class _Claim:
    def __init__(self, client: "MlflowClient", model: str, digest: str) -> None:
        self._client, self._model, self._prefix = client, model, f"{TAG}{digest}."
        self._key = f"{self._prefix}{_workspace()}"
        self._since: dict[tuple[str, str], float] = {}  # the claim of somebody else as it was first seen -> when

    def make(self) -> None:
        """Write it, as soon as there is no other one."""
        told: list[str] = []
        while found := self._write():
            self.withdraw()
            others = [_who(value) for _, value in found]
            if others != told:
                logging.getLogger(__name__).warning("waiting for %s: the same content", ", ".join(others))
                told = others
            time.sleep(random.uniform(*_SECONDS_BETWEEN_LOOKS))  # noqa: S311  # no secret

    def renew(self) -> None:
        if not (found := self._write()):
            return
        time.sleep(_SECONDS_TO_WITHDRAW)  # who only asks whether it is free withdraws at once
        if stayed := [value for key, value in self._others() if (key, value) in found]:
            raise TrackingUnavailableError(
                f"{_who(stayed[0])} took over the registration of the same content; `refit register` finds it later"
            )

    def withdraw(self) -> None:
        self._client.delete_registered_model_tag(self._model, self._key)

    def bury(self) -> None:
        """Clear away the claims of dead processes."""
        for key, _ in self._others():
            self._client.delete_registered_model_tag(self._model, key)

    def _write(self) -> list[tuple[str, str]]:
        """Write the claim, then read; give the living ones of others, as (key, value)."""
        who = f"process {os.getpid()} on {socket.gethostname()}"
        self._client.set_registered_model_tag(self._model, self._key, f"{who} {secrets.token_hex(4)}")
        oldest = time.monotonic() - _SECONDS_A_CLAIM_LIVES
        seen = {claim: self._since.setdefault(claim, time.monotonic()) for claim in self._others()}
        return [claim for claim, since in seen.items() if since > oldest]

    def _others(self) -> list[tuple[str, str]]:
        tags = self._client.get_registered_model(self._model).tags.items()
        return sorted((key, value) for key, value in tags if key.startswith(self._prefix) and key != self._key)


def _who(value: str) -> str:
    return value.rpartition(" ")[0]


def _workspace() -> str:
    """Names this workspace, and no copy of it: a claim that a killed process left here is known to be our own."""
    file = EFFECTS_LOCK.absolute()
    entry = file.stat()
    return hashlib.sha256(f"{socket.gethostname()} {file} {entry.st_dev} {entry.st_ino}".encode()).hexdigest()[:16]
