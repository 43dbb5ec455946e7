"""Every writing request that an MLflow server with accounts knows, made by an account that must not get through.

Nothing is assumed of which of them are dangerous, or of what they answer: afterwards the release must be what it was.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_WRITING = ("POST", "PUT", "PATCH", "DELETE")
_ABOUT_PEOPLE = re.compile(r"/(users|roles)/")
_NEEDS_ANOTHER = re.compile(r"users/(update-password|delete)$")  # an account may do so to itself


def attack(address: str, account: str, password: str, victim: str, asked: Mapping[str, object]) -> Counter[int]:
    """How often the server gave which answer.

    Args:
        victim: an account that is not to be changed.
        asked: what the requests name: `path` is that of a stored file of the release; all else goes into the body, and
            into the address where that has a place for it.
    """
    token = base64.b64encode(f"{account}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    answers: Counter[int] = Counter()
    for path, method in sorted(set(_requests())):
        for username in (account, victim) if _ABOUT_PEOPLE.search(path) else (victim,):
            if _NEEDS_ANOTHER.search(path) and username == account:
                continue
            filled = re.sub(r"<(?:\w+:)?(\w+)>", lambda place: str(asked.get(place[1], "1")), path)
            body = json.dumps({**asked, "username": username}).encode()
            request = Request(address + filled, body, headers, method=method)
            try:
                with urlopen(request, timeout=60) as answer:
                    answers[answer.status] += 1
            except HTTPError as error:
                answers[error.code] += 1
    return answers


def _requests() -> Iterator[tuple[str, str]]:
    """(path, method), as the installed server has them."""
    from mlflow.server.auth import routes
    from mlflow.server.handlers import get_endpoints

    for path, _, methods in get_endpoints():
        yield from ((path, method) for method in methods if method in _WRITING)
    own = {value for name, value in vars(routes).items() if not name.startswith("_") and isinstance(value, str)}
    yield from ((path, method) for path in own for method in _WRITING if path.startswith("/"))
