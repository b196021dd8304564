"""Models of Hugging Face: loading, architecture, attention, hooks; the only package that knows their internals."""
