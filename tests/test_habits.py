"""What people bring from other libraries works, or one line says how it is written here: docs/habits.md, row by row."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from transformers import LlamaForCausalLM

import bellm
from bellm import BellmError, Encoder, MultiViewEncoder
from bellm.engine.packing_check import check_packing
from bellm.errors import UnknownAttributeError
from bellm.hints import ATTRIBUTE_HINTS, ENCODE_HINTS, LOADING_HINTS, SETTING_HINTS

ROOT = Path(__file__).parents[1]
TEXTS = ["A heron.", "Snow fell all night in the street.", "Why does it rise?"]
ROWS = re.findall(
    r"^\| `(.+?)` \| (works|maps|refused) \| (.+?) \|$", (ROOT / "docs" / "habits.md").read_text("utf-8"), re.MULTILINE
)


def test_the_table_is_read() -> None:
    lines = (ROOT / "docs" / "habits.md").read_text("utf-8").splitlines()
    assert len(ROWS) == sum(line.startswith("| `") for line in lines) > 40


@pytest.mark.parametrize(("written", "kind", "here"), ROWS, ids=[row[0] for row in ROWS])
def test_a_habit(written: str, kind: str, here: str, tiny_encoder: Encoder, tiny_folder: Path) -> None:
    encoder = copy.copy(tiny_encoder)  # `to` changes an encoder.
    names = {"encoder": encoder, "Encoder": Encoder, "texts": TEXTS, "folder": tiny_folder, "numpy": np}
    names |= {"pandas": pandas, "polars": polars, "pyarrow": pyarrow, "vectors": encoder.encode(TEXTS)}
    names["views"] = MultiViewEncoder.prompts(tiny_encoder, ["prompteol", "angle"])
    if kind == "refused":
        with pytest.raises(BellmError) as caught:
            exec(written, names)
        message = str(caught.value)
        assert here.strip("`") in message
        assert "\n" not in message
        assert len(message) < 600
        return
    found = eval(written, names)
    if kind == "maps":
        wanted = eval(here.strip("`"), {**names, "encoder": tiny_encoder})
        if isinstance(wanted, np.ndarray):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
        else:
            assert found == wanted


# Keywords and attributes


@pytest.mark.parametrize("name", [name for name in ENCODE_HINTS | SETTING_HINTS if name != "normalize_embeddings"])
def test_each_keyword_of_encode_has_its_hint(tiny_encoder: Encoder, name: str) -> None:
    hint = ENCODE_HINTS.get(name) or f"encoder.replace({SETTING_HINTS[name]}=...)"
    with pytest.raises(BellmError, match=re.escape(f"{name!r} is no keyword of encode. Write {hint}.")):
        tiny_encoder.encode(TEXTS, **{name: 1})  # type: ignore[call-overload]


def test_all_unknown_keywords_are_named_at_once(tiny_encoder: Encoder) -> None:
    with pytest.raises(
        BellmError, match=r"'pool' is no keyword.*'pooling' is no .*replace\(pooling=...\)\. Keywords: "
    ):
        tiny_encoder.encode(TEXTS, pool=None, pooling="mean")  # type: ignore[call-overload]


@pytest.mark.parametrize("name", [*SETTING_HINTS, *LOADING_HINTS])
def test_each_setting_has_its_hint(tiny_encoder: Encoder, name: str) -> None:
    hint = (SETTING_HINTS | LOADING_HINTS)[name]
    with pytest.raises(BellmError, match=re.escape(f"{name!r} is no setting of an encoder. Write {hint}.")):
        tiny_encoder.replace(**{name: 1})


@pytest.mark.parametrize("name", ATTRIBUTE_HINTS)
def test_each_attribute_has_its_hint(tiny_encoder: Encoder, name: str) -> None:
    with pytest.raises(UnknownAttributeError, match=re.escape(ATTRIBUTE_HINTS[name])) as caught:
        getattr(tiny_encoder, name)
    assert isinstance(caught.value, AttributeError)
    assert not hasattr(tiny_encoder, name)
    with pytest.raises(BellmError, match=r"cannot be set|has no"):
        setattr(tiny_encoder, name, 1)


def test_settings_of_one_call_hold_for_it_alone_and_load_nothing_anew(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="instruct:Find birds")
    short = encoder.encode_query("A heron.", truncate_dim=4, normalize_embeddings=True)
    assert abs(float(np.linalg.norm(short)) - 1) < 1e-6
    np.testing.assert_allclose(
        short, encoder.replace(truncate_dim=4, normalize=True).encode_query("A heron."), atol=1e-6
    )
    assert encoder.encode_query("A heron.").shape == (encoder.embedding_dim,)
    unit = encoder.replace(normalize=True)
    assert np.array_equal(unit.encode(TEXTS, normalize_embeddings=False), unit.encode(TEXTS))
    np.testing.assert_allclose(unit.encode(TEXTS, normalize=False), encoder.encode(TEXTS), atol=1e-6)
    with encoder.causal():
        causal = encoder.encode(TEXTS)
        np.testing.assert_allclose(encoder.encode(TEXTS, truncate_dim=32), causal, atol=1e-6)
    assert np.abs(causal - encoder.encode(TEXTS)).max() > 1e-3


def test_what_contradicts_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="task='document' contradicts input_type='query'"):
        tiny_encoder.encode_query(TEXTS, task="document")
    with pytest.raises(BellmError, match=r"convert_to_numpy=False: .*convert_to_tensor=True"):
        tiny_encoder.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(tiny_encoder.encode(TEXTS, convert_to_numpy=False, convert_to_tensor=True), torch.Tensor)


def test_a_batch_has_no_more_tokens_than_so_many_of_the_longest(tiny_encoder: Encoder) -> None:
    encoder, seen = tiny_encoder.replace(prompt="raw", pooling="mean"), []
    packed = check_packing(encoder.model).packed_model
    assert packed
    hook = packed.model.get_input_embeddings().register_forward_hook(
        lambda _, ids, out: seen.append(out[..., 0].numel())
    )
    try:
        encoder.encode(["A heron waits.", "It snowed.", "Bread rises."] * 4 + ["Two trains leave."], batch_size=2)
    finally:
        hook.remove()
    longest = max(map(len, encoder.tokenize(["A heron waits.", "It snowed.", "Bread rises.", "Two trains leave."]).ids))
    assert seen
    assert max(seen) <= 2 * longest
    with pytest.raises(BellmError, match="batch_size=0 is too small: give at least 1"):
        encoder.encode(TEXTS, batch_size=0)


def test_cosines_of_pairs(tiny_encoder: Encoder) -> None:
    vectors = tiny_encoder.encode(TEXTS)
    tensor = tiny_encoder.encode(TEXTS, convert_to_tensor=True)
    wanted = np.diag(tiny_encoder.similarity(vectors, vectors[::-1]))
    np.testing.assert_allclose(tiny_encoder.similarity_pairwise(tensor, vectors[::-1].tolist()), wanted, atol=1e-6)
    assert tiny_encoder.similarity(tensor, tensor.double()).dtype == np.float32
    with pytest.raises(BellmError, match="3 and 2 vectors are no pairs"):
        tiny_encoder.similarity_pairwise(vectors, vectors[:2])


# Devices and dtypes


def test_an_encoder_moves_alone_and_its_rotary_frequencies_keep_their_precision(
    tiny_model: LlamaForCausalLM, tiny_encoder: Encoder, tiny_folder: Path
) -> None:
    encoder, before = copy.copy(tiny_encoder), tiny_encoder.encode(TEXTS)
    other = encoder.replace(pooling="mean")
    assert encoder.to(torch.bfloat16) is encoder
    assert (encoder.dtype_name, other.dtype_name, tiny_model.dtype) == ("bfloat16", "float32", torch.float32)
    loaded = Encoder.from_pretrained(tiny_folder, dtype="bfloat16")
    for ours, theirs in (
        (encoder, loaded),
        (encoder.replace(bidirectional="all"), loaded.replace(bidirectional="all")),
    ):
        assert np.array_equal(ours.encode(TEXTS), theirs.encode(TEXTS))
    assert {buffer.dtype for buffer in encoder.model.buffers()} == {buffer.dtype for buffer in loaded.model.buffers()}
    assert np.array_equal(tiny_encoder.encode(TEXTS), before)
    model = encoder.model
    assert encoder.to("cpu").to(dtype="bfloat16").model is model


def test_a_device_that_is_not_there_is_one_line(tiny_encoder: Encoder) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    for call in (tiny_encoder.cuda, lambda: tiny_encoder.to(0), lambda: tiny_encoder.to("cuda", torch.float16)):
        with pytest.raises(BellmError, match=r"cuda(:0)? cannot be used: .*(CUDA|NVIDIA)") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(BellmError, match="dtype='int8' is not one of auto"):
        tiny_encoder.to(dtype="int8")


# Looking around


def test_dir_shows_the_door() -> None:
    packages = {path.parent.name for path in ROOT.glob("bellm/*/__init__.py") if "__all__" in path.read_text("utf-8")}
    shown = {name for name in dir(bellm) if not name.startswith("__")}
    assert shown == {name for name in bellm.__all__ if not name.startswith("__")} | packages
    for name in shown:
        assert getattr(bellm, name) is not None
    assert {name for name in dir(bellm.train) if not name.startswith("__")} == set(bellm.train.__all__)


def test_an_encoder_shows_itself_in_a_notebook(tiny_encoder: Encoder) -> None:
    html = tiny_encoder.replace(prompt="<b>{text}")._repr_html_()
    assert "<tr><th>template</th><td>&lt;b&gt;{text}</td></tr>" in html
    assert all(f"<th>{name}</th>" in html for name in tiny_encoder.describe())


def test_help_names_every_keyword(tiny_encoder: Encoder) -> None:
    assert {"texts", "input_type", "batch_size", "progress"} <= inspect.signature(tiny_encoder.encode).parameters.keys()


def test_copies_and_pickles_survive_the_hints(tiny_encoder: Encoder) -> None:
    import pickle

    other: Any = pickle.loads(pickle.dumps(tiny_encoder))
    assert np.array_equal(other.encode(TEXTS), tiny_encoder.encode(TEXTS))
    assert copy.copy(tiny_encoder).config == tiny_encoder.config
