"""A finding as one page of HTML that needs nothing else."""

from bellm.layer_search.page.page import write_layer_page

__all__ = ["write_layer_page"]
