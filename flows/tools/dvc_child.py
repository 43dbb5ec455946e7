"""The process of flows/tools/dvc_process.py: DVC's command line, again and again. It stands alone: it is started by its
text, since a worker checks out commits that may have another flows/, or none.
"""

import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO


def main() -> None:
    gc.set_threshold(100_000, 50, 50)  # see refit/collector.py
    import dvc.commands.repro
    import dvc.repo.reproduce  # noqa: F401

    requests, output = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the requests are not for a stage to read
    serve(requests, output)
    gc.freeze()


def serve(requests: TextIO, output: TextIO) -> None:
    """Answer each request with what it says, and then a line of its mark and the exit status."""
    for line in requests:
        request = json.loads(line)
        mark = request.pop("mark")
        status = command(**request)
        sys.stdout.flush()
        os.dup2(output.fileno(), 1)  # after a broken pipe DVC points it elsewhere
        output.write(f"{mark}{status}\n")
        output.flush()


def command(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> int:
    """One command of DVC in its folder and environment; its exit status."""
    from dvc.cli import main as dvc

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        return int(dvc(list(arguments)))
    except SystemExit as stop:  # argparse
        return stop.code if isinstance(stop.code, int) else 1


if __name__ == "__main__":
    main()
