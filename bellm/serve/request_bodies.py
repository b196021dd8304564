"""Bodies of requests: their fields, and what is wrong with one in a sentence."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from bellm.errors import did_you_mean
from bellm.serve.request_errors import MalformedError, RequestError, TooLargeError
from bellm.types import InputType

_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXT: dict[str, Any] = {"type": "string"}

_INPUT_TYPES: dict[str, InputType] = {
    "text": "text",
    "query": "query",
    "document": "document",
    "search_query": "query",
    "search_document": "document",
    "classification": "text",
    "clustering": "text",
}
"""Input types by the names that they have here and in Cohere's dialect."""


def _problem(message: str) -> PydanticCustomError:
    return PydanticCustomError("bellm", "{message}", {"message": message})


def _read_texts(value: Any, info: ValidationInfo) -> list[str]:
    """A text or a list of texts, as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise _problem(f"is {_kind(value)}: send a text or a list of texts")
    _check_length(texts, info)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise _problem(f"[{index}] is {_kind(text)}: send texts")
    return texts


def _read_list(value: Any, info: ValidationInfo) -> list[str]:
    if isinstance(value, str):
        raise _problem("is a text: send a list of texts")
    return _read_texts(value, info)


def _read_input(value: Any, info: ValidationInfo) -> list[str] | list[list[int]]:
    """Texts, or token ids of one or more of them."""
    if not isinstance(value, list) or not value or isinstance(value[0], str):
        return _read_texts(value, info)
    rows = value if isinstance(value[0], list) else [value]
    _check_length(rows, info)
    for index, ids in enumerate(rows):
        if not isinstance(ids, list) or not ids or any(type(one) is not int for one in ids):
            raise _problem(f"[{index}] is no list of token ids: send a text, a list of texts, or lists of token ids")
    return rows


def _check_length(items: Sequence[object], info: ValidationInfo) -> None:
    limit = (info.context or {}).get("max_texts")
    if not items:
        raise _problem("is empty: send at least one text")
    if limit is not None and len(items) > limit:
        raise PydanticCustomError("too_many", "{message}", {"message": f"has {len(items)} items: send {limit} at most"})


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _read_input_type(value: Any) -> InputType | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in _INPUT_TYPES:
        raise _problem(f"{value!r:.40} is not one of {', '.join(_INPUT_TYPES)}")
    return _INPUT_TYPES[value]


Texts = Annotated[list[str], PlainValidator(_read_texts), WithJsonSchema({"anyOf": [_TEXT, _TEXTS]})]
TextList = Annotated[list[str], PlainValidator(_read_list), WithJsonSchema(_TEXTS)]
TextsOrIds = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_read_input),
    WithJsonSchema({"anyOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}),
]
InputTypeName = Annotated[
    InputType | None,
    PlainValidator(_read_input_type),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": list(_INPUT_TYPES)}, {"type": "null"}]}),
]
Dimensions = Annotated[int | None, Field(ge=1, description="The first so many numbers of each vector.")]


class RequestBody(BaseModel):
    """A body whose fields are all known, and of their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OpenAIEmbeddings(RequestBody):
    """OpenAI's request for embeddings, and what bellm knows besides."""

    input: TextsOrIds
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Dimensions = None
    user: str | None = None
    input_type: InputTypeName = None
    truncate: bool | None = None


class TeiEmbed(RequestBody):
    """text-embeddings-inference's request for embeddings."""

    inputs: Texts
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    normalize: bool | None = None
    prompt_name: InputTypeName = None
    dimensions: Dimensions = None
    model: str | None = None


class SentencePair(RequestBody):
    """A sentence, and others to be compared with it."""

    source_sentence: str
    sentences: TextList


class SimilarityParameters(RequestBody):
    """How texts are read that are compared."""

    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: InputTypeName = None


class TeiSimilarity(RequestBody):
    """Cosines of a sentence with others."""

    inputs: SentencePair
    parameters: SimilarityParameters | None = None
    model: str | None = None


class TeiRerank(RequestBody):
    """Texts to be put in order: `texts` as text-embeddings-inference has them, `documents` as infinity has."""

    query: str
    texts: TextList | None = None
    documents: TextList | None = None
    top_n: Annotated[int | None, Field(ge=1)] = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    return_documents: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None
    model: str | None = None


class TeiTokenize(RequestBody):
    """Texts whose tokens are asked for, as the model gets them."""

    inputs: Texts
    add_special_tokens: Literal[True] = True
    prompt_name: InputTypeName = None
    model: str | None = None


class CohereEmbed(RequestBody):
    """Cohere's request for embeddings."""

    model: str | None = None
    texts: TextList
    input_type: InputTypeName = None
    embedding_types: list[Literal["float", "base64"]] | None = None
    output_dimension: Dimensions = None
    truncate: Literal["NONE", "END"] | None = None


class SearchQuery(RequestBody):
    """What to look for in the corpus."""

    query: Annotated[str, Field(min_length=1)]
    top: Annotated[int, Field(ge=1, le=1000)] = 10
    exact: bool = False


Body = TypeVar("Body", bound=BaseModel)


def read_fields(kind: type[Body], body: bytes, max_texts: int) -> Body:
    """Read a JSON body.

    Raises:
        RequestError: It is no JSON object, or a field is wrong, which the error names.
    """
    try:
        return kind.model_validate_json(body, context={"max_texts": max_texts})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    if problem["type"] in ("json_invalid", "model_type", "model_attributes_type"):
        why = problem.get("ctx", {}).get("error", "it is none")
        raise MalformedError(f"The body must be a JSON object: {why:.200}.")
    field = ".".join(str(part) for part in problem["loc"]) or "body"
    if problem["type"] == "too_many":
        raise TooLargeError(f"{field} {problem['msg']}.", field)
    if problem["type"] == "bellm":
        said = problem["msg"]
        raise RequestError(f"{field}{'' if said[0] == '[' else ' '}{said}.", field)
    if problem["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields)
        near = did_you_mean(field, kind.model_fields)
        raise RequestError(f"{field!r:.60} is no field of this request, which has {known}.{near}", field[:60])
    if problem["type"] == "missing":
        raise RequestError(f"{field} is missing.", field)
    raise RequestError(f"{field}={problem['input']!r:.60}: {problem['msg']}.", field)
