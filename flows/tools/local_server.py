"""A Prefect server of our own, for as long as a command lasts, where none is configured.

    require_server = serve_locally()    before the flow is imported: the server starts meanwhile
    require_server()                    before it is needed

Prefect would start one itself, but late, and it would take twice as long (6 s instead of 3 where benchmarks/README.md
was measured). The socket is opened here and handed over: there is no port to race for, and a connection waits until the
server takes it up. The server ends when the pipe to it closes, which also happens when this process is killed.
"""

import atexit
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from refit.collector import relax
from refit.errors import OrchestratorUnavailableError

_SECONDS_TO_START = 240  # a slow machine makes its database for the first time
_SECONDS_TO_END = 10


def serve_locally() -> Callable[[], None]:
    """Start a server, unless Prefect's settings name one, or forbid it.

    Returns:
        What waits until the server answers. Raises OrchestratorUnavailableError if it does not.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # prefect reads it once, when it is imported
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, get_current_settings

    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        from flows.tools.liveness import require_server

        return require_server
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.tools.local_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            # Some settings lie in files of the present folder.
            env={**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # an interrupt at the terminal is for this process, which has an end to report
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    atexit.register(_end, server)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    os.environ["PREFECT_API_URL"] = address
    os.environ["PREFECT_UI_URL"] = ""  # no link to pages that are gone when the command ends
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    return lambda: _require(address)


def _require(address: str) -> None:
    try:
        urlopen(f"{address}/health", timeout=_SECONDS_TO_START).close()  # noqa: S310
    except OSError as error:
        raise OrchestratorUnavailableError(
            f"the temporary Prefect server did not start ({error}); its own message is above. Is its database "
            "(in ~/.prefect, or PREFECT_HOME) whole, and made by this version of Prefect?"
        ) from None


def _end(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        server.kill()


def main() -> None:
    """The server's process."""
    relax()
    running: list[Any] = []  # uvicorn's server, once it is made

    def end_with_parent() -> None:
        sys.stdin.read()
        if not running or not running[0].started:
            os._exit(0)  # nobody waits for it to start; a migration that is cut off here goes on next time
        running[0].should_exit = True

    threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    settings = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", timeout_graceful_shutdown=3)
    running.append(uvicorn.Server(settings))
    running[0].run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
