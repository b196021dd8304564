"""What training makes small: losses as pure functions of vectors, scores and log-probabilities."""
