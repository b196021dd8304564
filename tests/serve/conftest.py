from collections.abc import Iterator

import pytest

from bellm import Encoder, MultiViewEncoder, Prompt
from bellm.serve import ServeConfig, create_app
from tests.serve.planted import Planted
from tests.serve.servers import Held, serving


@pytest.fixture(scope="session")
def asking(tiny_encoder: Encoder) -> Encoder:
    """An encoder whose prompt tells queries from documents, with vectors of length 1."""
    prompt = Prompt("asking", "{text}", query="Question: {text}", document="Answer: {text}")
    return tiny_encoder.replace(prompt=prompt, normalize=True, pooling="mean")


@pytest.fixture(scope="session")
def server(tiny_encoder: Encoder, asking: Encoder) -> Iterator[str]:
    """The address of a server of three models; `tiny` is the default."""
    models = {"tiny": tiny_encoder, "asking": asking, "views": MultiViewEncoder([tiny_encoder, asking])}
    config = ServeConfig(max_texts=64, max_body=100_000, read_seconds=1.0)
    with serving(create_app(models, config)) as url:
        yield url


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    planted = Planted()
    app = create_app(planted, ServeConfig(**{"max_queue_tokens": 50, **getattr(request, "param", {})}))
    with serving(app) as url:
        planted.open.clear()
        planted.batches.clear()
        held = Held(app, planted, url)
        yield held
        held.finish()
