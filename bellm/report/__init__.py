"""What pages have in common: one file of HTML each, that needs nothing else."""
