"""Files: written whole or not at all, and rows read one way for all commands."""
