"""The decisions: orchestration, effects and the command line. Never imports torch at module level."""
