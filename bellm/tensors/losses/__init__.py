"""Losses as pure functions of vectors, scores and log-probabilities; `bellm.train` wraps them as objectives."""
