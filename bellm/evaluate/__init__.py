"""Published yardsticks for anything that embeds, with intervals, paired tests and a report."""
