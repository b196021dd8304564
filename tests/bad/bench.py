"""A folder of inputs and models, good ones and one of each kind of bad one, made on the spot."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from bellm import Encoder
from bellm.io.formats import LONGEST
from tests.evaluate.sets import write_pairs
from tests.train.rows import triplets

TEXTS = ("A heron stands in the shallow water.", "", "Snow fell all night.", "The invoice was paid twice.")
WEIGHTS = "model.safetensors"
SMALL = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 400}


def make_bench(folder: Path, encoder: Encoder, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Fill a folder; names say what is wrong with each file."""
    folder.mkdir()
    _write_inputs(folder)
    _write_rows(folder)
    _write_recipes(folder)
    _write_outputs(folder)
    encoder.save_pretrained(folder / "tiny")
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    _write_models(folder, tokenizer)
    _write_saved(folder)


def _write_inputs(folder: Path) -> None:
    text = "\n".join(TEXTS) + "\n"
    files: dict[str, str | bytes] = {
        "good.txt": text,
        "two.txt": "one\ntwo\n",
        "good.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "good.csv": "id,text\n1,A heron\n2,Snow\n",
        "good.pdf": text,
        "graphs.amr": "# ::snt Snow\n(s / snow)\n",
        "broken.amr": "# ::snt Snow\n(s / snow)\n\n# ::snt A heron\n(h / heron :mod\n",
        "two_graphs.amr": "# ::snt Snow\n(s / snow)\n\n# ::snt Snow\n(s / snow-01)\n",
        "nosuffix": text,
        "empty.csv": "",
        "header.csv": "anchor,positive\n",
        "binary.txt": bytes(range(256)),
        "latin1.txt": "fine\nnaïve\n".encode("latin1"),
        "utf16le.txt": text.encode("utf-16-le"),
        "nocolumn.csv": "id,phrase\n1,hello\n",
        "twocolumns.csv": "text,text\nhello,there\n",
        "ragged.csv": "id,text\n1,hello,there\n2\n",
        "quote.csv": 'id,text\n1,"hello\n2,there\n',
        "broken.jsonl": '{"text": "fine"\n',
        "null.jsonl": '{"text": null}\n',
        "nested.jsonl": '{"text": ["a", "b"]}\n',
        "number.jsonl": '{"text": 5}\n',
        "nokey.jsonl": '{"phrase": "hello"}\n',
        "half.jsonl": '{"text": "\\ud83d"}\n',
        "junk.jsonl": "not json at all\n",
        "junk.parquet": b"PAR1 and then nothing of the kind",
        "junk.txt.gz": b"not compressed",
        "cut.txt.gz": gzip.compress(text.encode() * 100)[:40],
        "zeros.jsonl": '{"text": "A\\u0000heron"}\n',
        "cyrillic.csv": "text\n\u0447\u0430\u0439\n\u0432\u043e\u0434\u0430\n".encode("utf-16-le"),
        "double.txt.gz": gzip.compress(gzip.compress(text.encode())),
        "twice.jsonl": '{"text": "A heron", "text": "Snow"}\n',
        "huge.txt": b"x" * (LONGEST + 2),
        "junk.gguf": b"GGUF and then nothing of the kind",
        "nan.jsonl": '{"text": "A heron", "vector": [NaN, 1.0]}\n',
        "uneven.jsonl": '{"text": "a", "vector": [1.0]}\n{"text": "b", "vector": [1.0, 2.0]}\n',
        "few.vectors.jsonl": '{"text": "A heron", "vector": [0.5, 1.0]}\n',
        "old.npy": "old",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    pq.write_table(pa.table({"phrase": ["hello"]}), folder / "nocolumn.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    (folder / "hard.jsonl").symlink_to("good.jsonl")
    (folder / "dangling.txt").symlink_to("nowhere.txt")
    (folder / "loop.txt").symlink_to("loop.txt")


def _write_rows(folder: Path) -> None:
    """Training data, data sets and files of rated pairs."""
    rows = [(one.anchor, one.positives[0], one.negatives[0]) for one in triplets(12)]
    pairs = [f'"{left}","{right}"' for left, right, _ in rows]
    (folder / "triplets.csv").write_text(
        "anchor,positive,negative\n" + "".join(f'"{a}","{p}","{n}"\n' for a, p, n in rows)
    )
    (folder / "one_anchor.csv").write_text("anchor,positive\n" + "".join(f'a heron,"{p}"\n' for _, p, _ in rows))
    (folder / "equal.csv").write_text("sentence1,sentence2,score\n" + "".join(f"{pair},3\n" for pair in pairs))
    (folder / "classes.csv").write_text(
        "sentence1,sentence2,label\n" + "".join(f"{pair},{number % 3}\n" for number, pair in enumerate(pairs))
    )
    (folder / "one_pair.csv").write_text(f"sentence1,sentence2,score\n{pairs[0]},3\n")
    (folder / "blank_anchor.csv").write_text("anchor,positive\n,nothing\n,nothing else\n")
    (folder / "mixed.jsonl").write_text('{"anchor": "a"}\n{"foo": "b"}\n')
    write_pairs(folder / "sets", "dev")
    write_pairs(folder / "sets", "test")
    write_pairs(folder / "one_pair_set", "dev", count=1)
    (folder / "broken_set" / "stsbenchmark").mkdir(parents=True)
    (folder / "broken_set" / "stsbenchmark" / "sts-dev.csv").write_text("a\tb\n")


def _write_recipes(folder: Path) -> None:
    recipe = 'from bellm.train import InfoNCE, LoRA, Recipe\n\nrecipe = Recipe(model="tiny", batch_size=4, {})\n'
    for name, text in {
        "recipe_none.py": "nothing = 0\n",
        "recipe_syntax.py": "recipe = Recipe(\n",
        "recipe_raises.py": "numbers = []\nrecipe = numbers[3]\n",
        "recipe_import.py": "import no_such_module_at_all\n",
        "recipe_misspelt.py": recipe.format("batchsize=8"),
        "recipe_setting.py": recipe.format('encoder_options={"poolin": "mean"}'),
        "recipe_value.py": recipe.format('encoder_options={"pooling": "middle"}'),
        "recipe_no_tensor.py": recipe.format("objective=lambda batch: 1.5"),
        "recipe_raising_objective.py": recipe.format("objective=lambda batch: batch.nothing"),
        "recipe_detached.py": recipe.format("objective=lambda batch: batch.anchors_BD.detach().sum()"),
        "recipe_type.py": recipe.format('epochs="many"'),
        "recipe_tuning.py": recipe.format('tuning="lora"'),
        "recipe_exit.py": "import sys\nsys.exit()\n",
    }.items():
        (folder / name).write_text(text)


def _write_outputs(folder: Path) -> None:
    for name in ("empty_folder", "folder.npy", "foreign"):
        (folder / name).mkdir()
    (folder / "foreign" / "thesis.tex").write_text("Chapter one.\n")
    for name, file, content in (
        ("junk_report", "results.json", "{"),
        ("other_report", "results.json", '{"model": "another", "compared": []}'),
        ("junk_finding", "layers.json", "[]"),
        ("junk_run", "run.json", "{"),
        ("other_run", "run.json", '{"data": 1}'),
        ("junk_corpus", "manifest.json", "{"),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(content)
    (folder / "junk_run" / "model").mkdir()
    (folder / "junk_corpus" / "shards").mkdir()


def _copy(folder: Path, source: str, name: str, change: Callable[[Path], Any]) -> None:
    shutil.copytree(folder / source, folder / name)
    change(folder / name)


def _edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        values |= {key: value for key, value in changes.items() if value is not None}
        for key in [key for key, value in changes.items() if value is None]:
            del values[key]
        (folder / file).write_text(json.dumps(values))

    return change


def _put(file: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def _drop(*files: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / file).unlink() for file in files]


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def _bin_only(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, os.path.getsize(folder / WEIGHTS) // 2)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
NAN = torch.tensor(float("nan"))


def _write_models(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Folders of models, by what is wrong with them."""
    changes: dict[str, Callable[[Path], Any]] = {
        "no_tokenizer": _drop("tokenizer.json", "tokenizer_config.json"),
        "junk_tokenizer": _put("tokenizer.json", "{"),
        "no_config": _drop("config.json"),
        "no_weights": _drop(WEIGHTS),
        "junk_config": _put("config.json", "{"),
        "list_config": _put("config.json", "[]"),
        "unknown_type": _edit("config.json", model_type="frobnicate"),
        "no_type": _edit("config.json", model_type=None),
        "bad_shape": _edit("config.json", hidden_size=64),
        "bad_value": _edit("config.json", num_hidden_layers="four"),
        "too_many_layers": _edit("config.json", num_hidden_layers=6),
        "cut_weights": _cut,
        "junk_weights": _put(WEIGHTS, "junk"),
        "pointer_weights": _put(WEIGHTS, POINTER),
        "bin_only": _bin_only,
        "renamed_weights": _weights(lambda tensors: {f"strange.{name}": part for name, part in tensors.items()}),
        "lost_projection": _weights(
            lambda tensors: {name: part for name, part in tensors.items() if "layers.1.self_attn.q_proj" not in name}
        ),
        "nan_model": _weights(
            lambda tensors: {name: part + NAN if "layers.2.mlp" in name else part for name, part in tensors.items()}
        ),
        "remote_code": _edit("config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"}),
    }
    for name, change in changes.items():
        _copy(folder, "plain", name, change)
    strangers: dict[str, PreTrainedModel] = {
        "t5": T5ForConditionalGeneration(T5Config(**SMALL)),
        "bert": BertModel(
            BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=400)
        ),
        "vit": ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)),
        "whisper": WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                vocab_size=400,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        ),
    }
    for name, model in strangers.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "adapter_lost_base").mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "./no/such/base", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_lost_base" / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"nothing": torch.zeros(1)}, folder / "adapter_lost_base" / "adapter_model.safetensors")
    _copy(folder, "plain", "dense_modules", _write_dense)


def _write_dense(folder: Path) -> None:
    """A sentence-transformers folder with a layer on top that a bellm encoder has no place for."""
    kinds = ("Transformer", "Pooling", "Dense")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for kind, config in (("1_Pooling", {"pooling_mode_mean_tokens": True}), ("2_Dense", {"in_features": 32})):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(config))


def _write_saved(folder: Path) -> None:
    """Folders of saved encoders."""
    for name, change in {
        "junk_saved": _put("bellm.json", "{"),
        "list_saved": _put("bellm.json", "[]"),
        "poor_saved": _edit("bellm.json", pooling=None),
        "wrong_saved": _edit("bellm.json", pooling="middle"),
        "changed_saved": _edit("bellm.json", pooling="mean"),
        "no_fingerprint": _drop("fingerprint.safetensors"),
        "junk_fingerprint": _put("fingerprint.safetensors", "junk"),
        "other_weights": _weights(lambda tensors: {key: part * 1.5 for key, part in tensors.items()}),
    }.items():
        _copy(folder, "tiny", name, change)
