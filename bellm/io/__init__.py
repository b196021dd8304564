"""Files: atomic writes, one reader of rows for every command, and files of vectors."""
