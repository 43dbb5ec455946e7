"""Pictures: how a file becomes an example, an example a batch, and which networks read it."""
