"""Training: texts that belong together, and models that learn to say so."""
