"""The dialect of text-embeddings-inference, also as huggingface_hub and litellm speak it.

There is no `/embed_all`: an encoder gives one vector a text, and its prompt's tokens are not the text's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from starlette.responses import Response

from bellm.serve.endpoints import Endpoint, check_dimensions, json_response
from bellm.serve.request_bodies import (
    SentencePair,
    SimilarityParameters,
    TeiEmbed,
    TeiRerank,
    TeiSimilarity,
    TeiTokenize,
    Texts,
)
from bellm.serve.request_errors import RequestError
from bellm.serve.served_model import ServedModel
from bellm.serve.service import Call, EmbeddingService, Prepared
from bellm.tensors.similarity import cosine_similarity
from bellm.types import InputType, Vectors
from bellm.version import __version__

_TOKEN_BYTES = 300  # Of a token in an answer, as an object and as JSON.


class TeiRoot(TeiEmbed):
    """Texts to be embedded, or a sentence and others to be compared with it, as huggingface_hub sends them."""

    inputs: Annotated[SentencePair | Texts, Field(union_mode="left_to_right")]  # type: ignore[assignment]
    parameters: SimilarityParameters | None = None


async def embed_texts(service: EmbeddingService, call: Call, body: TeiEmbed) -> Response:
    """A list of vectors."""
    model = service.get_model(body.model)
    check_dimensions(model, body.dimensions)
    prepared = await service.prepare(
        call, model, body.inputs, body.prompt_name or "text", truncate=body.truncate is not False, field="inputs"
    )
    vectors = model.shape(await service.embed(call, prepared), body.dimensions, body.normalize)
    return json_response(np.ascontiguousarray(vectors))


async def embed_or_compare(service: EmbeddingService, call: Call, body: TeiRoot) -> Response:
    """A list of vectors, or cosines of a sentence with others."""
    if isinstance(body.inputs, SentencePair):
        similar = TeiSimilarity(inputs=body.inputs, parameters=body.parameters, model=body.model)
        return await similarity(service, call, similar)
    return await embed_texts(service, call, body)


async def similarity(service: EmbeddingService, call: Call, body: TeiSimilarity) -> Response:
    """Cosines of a sentence with others."""
    model, pair, how = service.get_model(body.model), body.inputs, body.parameters or SimilarityParameters()
    texts = [pair.source_sentence, *pair.sentences]
    prepared = await service.prepare(
        call, model, texts, how.prompt_name or "text", truncate=how.truncate is not False, field="inputs"
    )
    vectors = await service.embed(call, prepared)
    return json_response(_cosines(vectors))


async def rerank(service: EmbeddingService, call: Call, body: TeiRerank) -> Response:
    """Texts by the cosine of their vectors with that of the query."""
    texts = body.texts or body.documents
    if not texts or (body.texts and body.documents):
        raise RequestError("Send the texts to be put in order as texts, or as documents.", "texts")
    model, truncate = service.get_model(body.model), body.truncate is not False
    field = "texts" if body.texts else "documents"
    query = await service.prepare(call, model, [body.query], "query", truncate=truncate, field="query")
    documents = await service.prepare(call, model, texts, "document", truncate=truncate, field=field)
    scores = _cosines(await service.embed(call, Prepared(model, query.rows + documents.rows)))
    order = (-scores).argsort(kind="stable")[: body.top_n].tolist()
    if body.texts:
        shown = {"text": texts} if body.return_text else {}
        return json_response([_ranked(index, "score", scores, shown) for index in order])
    shown = {"document": texts} if body.return_documents else {}
    results = [_ranked(index, "relevance_score", scores, shown) for index in order]
    usage = {"prompt_tokens": call.num_tokens, "total_tokens": call.num_tokens}
    return json_response({"id": call.id, "object": "rerank", "model": model.name, "results": results, "usage": usage})


def _ranked(index: int, name: str, scores: Vectors, shown: dict[str, list[str]]) -> dict[str, Any]:
    return {"index": index, name: float(scores[index]), **{key: texts[index] for key, texts in shown.items()}}


def _cosines(vectors_ND: Vectors) -> Vectors:
    """Cosines of the first vector with the others."""
    return np.ascontiguousarray(cosine_similarity(vectors_ND[:1], vectors_ND[1:])[0])


async def tokenize_texts(service: EmbeddingService, call: Call, body: TeiTokenize) -> Response:
    """Tokens of texts in their prompt, as the model gets them."""
    model = service.get_model(body.model)
    if not model.encoders:
        raise RequestError(f"{model.name} has no tokenizer that is known.", "model")
    found = await service.in_parts(partial(_tokens, model), body.inputs, body.prompt_name or "text")
    rows = [row for part in found for row in part]
    service.hold(call, _TOKEN_BYTES * sum(map(len, rows)))
    return json_response(rows)


def _tokens(model: ServedModel, texts: Sequence[str], input_type: InputType) -> list[list[dict[str, Any]]]:
    encoder = model.encoders[0]
    special = set(encoder.tokenizer.all_special_ids)
    return [
        [
            {"id": one, "text": encoder.tokenizer.decode([one]) if one >= 0 else "", "special": one in special}
            for one in ids
        ]
        for ids in encoder.tokenize(texts, input_type).ids
    ]


async def info(service: EmbeddingService, _: Call, __: None) -> Response:
    """The models and their settings, and the limits of the server."""
    model, config = service.default, service.config
    known = model.embedder.describe()
    return json_response(
        {
            "model_id": model.name,
            "model_dtype": known.get("dtype"),
            "model_type": {"embedding": {"pooling": known.get("pooling")}},
            "max_concurrent_requests": config.max_connections,
            "max_input_length": model.max_tokens,
            "max_batch_tokens": config.max_batch_tokens or model.batch_tokens,
            "max_client_batch_size": config.max_texts,
            "auto_truncate": True,
            "version": __version__,
            "max_queue_tokens": config.max_queue_tokens,
            "max_body": config.max_body,
            "timeout": config.timeout,
            "has_index": service.index is not None,
            "models": {name: each.embedder.describe() for name, each in service.models.items()},
        }
    )


_VECTORS = [[0.12, -0.03]]

TEI_ENDPOINTS = (
    Endpoint("POST", "/embed", embed_texts, "Vectors of texts", "tei", TeiEmbed, _VECTORS),
    Endpoint(
        "POST",
        "/",
        embed_or_compare,
        "Vectors of texts, or cosines of a sentence with others, as huggingface_hub asks",
        "tei",
        TeiRoot,
        _VECTORS,
    ),
    Endpoint("POST", "/similarity", similarity, "Cosines of a sentence with others", "tei", TeiSimilarity, [0.93]),
    Endpoint(
        "POST",
        "/rerank",
        rerank,
        "Texts by their cosine with a query, as text-embeddings-inference and infinity give them",
        "tei",
        TeiRerank,
        [{"index": 1, "score": 0.93}],
    ),
    Endpoint(
        "POST",
        "/tokenize",
        tokenize_texts,
        "Tokens of texts in their prompt",
        "tei",
        TeiTokenize,
        [[{"id": 1, "text": "Snow", "special": False}]],
    ),
    Endpoint("GET", "/info", info, "The models and their settings, and the limits of the server", "tei"),
)
