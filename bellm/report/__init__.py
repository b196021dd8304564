"""Statistics, tables, figures and pages: what the reports of all rooms are made of."""
