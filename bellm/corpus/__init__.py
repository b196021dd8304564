"""Texts of files larger than memory to a folder of vectors, resumed wherever it was stopped."""
