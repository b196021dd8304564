"""Cohere's dialect: `/v2/embed`."""

import numpy as np
from starlette.responses import Response

from bellm.serve.endpoints import Endpoint, as_base64, check_dimensions, json_response
from bellm.serve.request_bodies import CohereEmbed
from bellm.serve.service import Call, EmbeddingService


async def cohere_embed(service: EmbeddingService, call: Call, body: CohereEmbed) -> Response:
    """Vectors of texts by type."""
    model = service.get_model(body.model)
    check_dimensions(model, body.output_dimension, "output_dimension")
    prepared = await service.prepare(
        call, model, body.texts, body.input_type or "text", truncate=body.truncate != "NONE", field="texts"
    )
    vectors = model.shape(await service.embed(call, prepared), body.output_dimension, None)
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": call.num_tokens}}
    embeddings = {
        form: np.ascontiguousarray(vectors) if form == "float" else [as_base64(vector) for vector in vectors]
        for form in body.embedding_types or ["float"]
    }
    return json_response({"id": call.id, "embeddings": embeddings, "texts": body.texts, "meta": meta})


COHERE_ENDPOINTS = (
    Endpoint(
        "POST",
        "/v2/embed",
        cohere_embed,
        "Vectors of texts, as Cohere's API gives them",
        "cohere",
        CohereEmbed,
        example={"id": "1", "embeddings": {"float": [[0.12, -0.03]]}, "texts": ["Snow fell."], "meta": {}},
    ),
)
