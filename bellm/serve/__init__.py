"""Vectors over HTTP, in the dialects of OpenAI, text-embeddings-inference and Cohere; extra `serve`."""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.serve.api import create_app
    from bellm.serve.http_server import run_server
    from bellm.serve.ports import bind_port
    from bellm.serve.serve_config import ServeConfig

__all__ = ["ServeConfig", "bind_port", "create_app", "run_server"]

__getattr__, __dir__ = lazy_exports(__name__, "serve")
