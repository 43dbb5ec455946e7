"""The work: one file per stage, and the ground they stand on. Nothing in here knows an orchestrator."""
