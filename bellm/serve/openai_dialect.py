"""OpenAI's dialect: `/v1/embeddings` and `/v1/models`."""

from starlette.responses import Response

from bellm.errors import BellmError
from bellm.serve.endpoints import Endpoint, as_base64, check_dimensions, json_response
from bellm.serve.request_bodies import OpenAIEmbeddings
from bellm.serve.request_errors import RequestError
from bellm.serve.service import Call, EmbeddingService


async def embeddings(service: EmbeddingService, call: Call, body: OpenAIEmbeddings) -> Response:
    """Vectors of texts, as numbers or in base64."""
    model = service.get_model(body.model)
    check_dimensions(model, body.dimensions)
    if isinstance(body.input[0], str):
        texts: list[str] = [text for text in body.input if isinstance(text, str)]
    elif not service.config.allow_token_ids:
        raise RequestError(
            "input holds token ids, which from another tokenizer give wrong vectors silently: send texts "
            "(LangChain: check_embedding_ctx_length=False), or start the server with --allow-token-ids.",
            "input",
        )
    else:
        try:
            texts = await service.in_thread(model.decode, body.input)
        except BellmError as error:
            raise RequestError(str(error), "input") from error
    prepared = await service.prepare(call, model, texts, body.input_type or "text", truncate=body.truncate is not False)
    vectors = model.shape(await service.embed(call, prepared), body.dimensions, None)
    is_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": as_base64(vector) if is_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": call.num_tokens, "total_tokens": call.num_tokens}
    return json_response({"object": "list", "data": data, "model": model.name, "usage": usage})


async def list_models(service: EmbeddingService, _: Call, __: None) -> Response:
    """Names of the models."""
    models = [
        {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "bellm",
            "embedding_dim": model.embedder.embedding_dim,
        }
        for name, model in service.models.items()
    ]
    return json_response({"object": "list", "data": models})


OPENAI_ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        embeddings,
        "Vectors of texts, as OpenAI's API gives them",
        body=OpenAIEmbeddings,
        example={
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.03]}],
            "model": "my-encoder",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        },
    ),
    Endpoint("GET", "/v1/models", list_models, "Names of the models"),
)
