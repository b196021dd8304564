"""A report as one page of HTML that needs nothing else."""

from bellm.evaluate.page.page import write_report_page

__all__ = ["write_report_page"]
