"""What Refit knows: deep modules with small surfaces. No orchestrator; everything can be called from a prompt."""
