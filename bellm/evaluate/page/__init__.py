"""A report as one page of HTML that needs nothing else."""

from bellm.evaluate.page.page import write_page

__all__ = ["write_page"]
