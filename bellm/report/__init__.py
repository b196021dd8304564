"""Statistics, tables, figures and pages: what the reports of all packages are made of."""
