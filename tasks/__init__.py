"""The work: the stages of dvc.yaml and the effects, one file each. Nothing in here knows an orchestrator."""

import sys

if sys.argv[0] == "-m":  # so it reads while `python -m tasks.<stage>` starts, before the stage imports anything
    from refit.collector import relax

    relax()
