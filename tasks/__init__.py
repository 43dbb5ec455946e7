"""The work: one file per stage, and the ground they stand on. Nothing in here knows an orchestrator."""

import sys

if sys.argv[0] == "-m":  # so it reads while `python -m tasks.<stage>` starts, before the stage imports anything
    from refit.collector import relax

    relax()
