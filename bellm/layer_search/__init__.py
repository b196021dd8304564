"""Which layers to open: measured on a model, without training or after a little."""
