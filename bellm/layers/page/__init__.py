"""A finding as one page of HTML that needs nothing else."""

from bellm.layers.page.page import write_page

__all__ = ["write_page"]
