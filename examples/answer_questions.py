"""From raw documents to answers: embed and index them, find passages for questions, and ask the same model.

The facts are invented, so that no model knows them. Each question is answered without and with the passages that a
search finds: the causal model scores every answer, and writes nothing.

Run it with `python examples/answer_questions.py`; it needs the extra `corpus`.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import transformers
from rich.console import Console
from rich.table import Table

from bellm import Encoder
from bellm.augment import LabelScorer
from bellm.corpus import Index, build_index, embed_corpus
from bellm.prompts import Rendered, join_rendered, render

DOCUMENTS = (
    "The lighthouse of Varn stands on a cliff. It was painted green in the year of the great storm.",
    "Mira Olden founded the bakery on Tanner Street. She sold nothing but rye bread at first.",
    "The ferry to Holm leaves from the third pier, and in winter it does not run at all.",
    "Old maps call the lake Pelle. Its water is salty, because a channel joins it to the sea.",
    "The school of Brask has no bell. A drum tells the children that lessons begin.",
    "On Midsummer the people of Kell eat eel soup, and the oldest of them cuts the bread.",
    "The clock on the town hall of Dorn has only one hand, and it shows the hours.",
    "Professor Haugen studied the otters of the Lind. She counted them from a balloon.",
    "The bridge at Sorra was built of oak, and every ten years its planks are replaced.",
    "In the museum of Ulm-on-Sea the largest room is full of kites.",
)

QUESTIONS = (
    ("What color is the lighthouse of Varn?", ("white", "green", "red"), "green"),
    ("What bread did Mira Olden sell at first?", ("wheat", "rye", "corn"), "rye"),
    ("From which pier does the ferry to Holm leave?", ("the first", "the second", "the third"), "the third"),
    ("What is the water of lake Pelle like?", ("sweet", "salty", "hot"), "salty"),
    ("What tells the children of Brask that lessons begin?", ("a bell", "a drum", "a horn"), "a drum"),
    ("What do the people of Kell eat on Midsummer?", ("eel soup", "roast lamb", "apple pie"), "eel soup"),
    ("What does the clock of Dorn show?", ("the hours", "the minutes", "the seconds"), "the hours"),
    ("From what did Professor Haugen count otters?", ("a boat", "a bridge", "a balloon"), "a balloon"),
    ("Of what was the bridge at Sorra built?", ("stone", "iron", "oak"), "oak"),
    ("What fills the largest room of the museum?", ("kites", "coins", "ships"), "kites"),
)


def main() -> None:
    """Embed, index, search, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias (smollm2)")
    parser.add_argument("--passages", type=int, default=1, help="passages before each question (1)")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        encoder = Encoder.from_pretrained(options.model, prompt="prompteol", pooling="last")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "documents.txt").write_text("".join(f"{text}\n" for text in DOCUMENTS), encoding="utf-8")
        embed_corpus(encoder, [folder / "documents.txt"], folder / "corpus", source=options.model, keep_text=True)
        build_index(folder / "corpus")
        index = Index.open(folder / "corpus")
        queries = encoder.encode_query([question for question, _, _ in QUESTIONS])
        found = [[str(hit.text) for hit in index.search(query, options.passages)] for query in queries]
    scorer = LabelScorer(encoder, length_normalized=True)
    table = Table("question", "answer", "alone", "with passages", "found")
    right = {"alone": 0, "with passages": 0, "found": 0}
    for (question, answers, answer), passages in zip(QUESTIONS, found, strict=True):
        scores = scorer.score([prompt(question, []), prompt(question, passages)], answers)
        alone, informed = (answers[best] for best in scores.argmax(1))
        is_found = any(answer in passage for passage in passages)
        right["alone"] += alone == answer
        right["with passages"] += informed == answer
        right["found"] += is_found
        table.add_row(question, answer, alone, informed, "yes" if is_found else "no")
    table.add_row("right", "", *(f"{number} of {len(QUESTIONS)}" for number in right.values()))
    Console(width=120).print(table)


def prompt(question: str, passages: list[str]) -> Rendered:
    """Passages, the nearest last, and the question; long passages are shortened, the question never."""
    shown = [render("Passage: {passage}\n", {"passage": passage}) for passage in reversed(passages)]
    return join_rendered([*shown, Rendered(f"Question: {question}\nAnswer:")])


if __name__ == "__main__":
    main()
