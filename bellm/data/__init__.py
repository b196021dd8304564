"""Published data sets, from a folder or from the Hub."""
