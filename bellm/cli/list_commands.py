"""`bellm tasks`, `bellm prompts` and `bellm models`: what there is to choose from."""

from collections.abc import Iterator
from typing import Any

from bellm.cli.model_options import AsJson
from bellm.cli.terminal import print_result, text_table


def tasks_command(*, as_json: AsJson = False) -> None:
    """List the tasks of bellm evaluate, and where their data comes from.

    Files and folders of your own are tasks too: see bellm evaluate --help.

    Example: bellm tasks
    """
    from bellm.data import CLASSIFICATION_SOURCES, RETRIEVAL_SOURCES, STS_SOURCES
    from bellm.data.task_names import GROUPS, TASK_NAMES, VALIDATION

    kinds = {"rated pairs": STS_SOURCES, "classes": CLASSIFICATION_SOURCES, "retrieval": RETRIEVAL_SOURCES}
    tasks = []
    for name in TASK_NAMES:
        kind, source = next((kind, sources[name]) for kind, sources in kinds.items() if name in sources)
        group = next((group for group, names in GROUPS.items() if name in names), None)
        about = {"name": name, "group": group, "kind": kind, "test_set": name not in VALIDATION}
        tasks.append({**about, "hub": source.hub or None, "address": source.address})
    rows = [[task["name"], task["group"], task["kind"], task["hub"] or task["address"]] for task in tasks]
    words = text_table(["task", "group", "kind", "data (or in the folder --data, BELLM_DATA)"], rows)
    print_result({"tasks": tasks}, as_json, words)


def prompts_command(*, as_json: AsJson = False) -> None:
    """List the prompts that have a name, with their templates.

    A template of your own is a prompt too: --prompt 'Topic: {text}'.

    Example: bellm prompts
    """
    from bellm.prompts import PROMPTS

    prompts = [
        {"name": prompt.name, "template": prompt.template, "query": prompt.query, "document": prompt.document}
        for prompt in PROMPTS.values()
    ]
    rows = [[prompt["name"], prompt["query"] or prompt["template"]] for prompt in prompts]
    rows += [["instruct:TASK", "as instruct, with a task of your own; documents are bare"]]
    rows += [["chat", "the chat template of the model's tokenizer"]]
    print_result(
        {"prompts": prompts}, as_json, text_table(["prompt", "template (of queries, where they differ)"], rows)
    )


def models_command(*, as_json: AsJson = False) -> None:
    """List the models that are on this machine: in the cache of the Hub, and in that of bellm.

    Any other model of the Hub is fetched when it is named, and a folder is a model wherever it lies.

    Example: bellm models
    """
    models = [*_hub_models(), *_kept_models()]
    rows = [[model["source"], f"{model['bytes'] / 1e9:.2f} GB", model["path"]] for model in models]
    words = text_table(["model", "size", "where"], rows) if rows else "No model is cached yet."
    print_result({"models": models}, as_json, words)


def _hub_models() -> Iterator[dict[str, Any]]:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type == "model":
            path, size = str(repository.repo_path), repository.size_on_disk
            yield {"source": repository.repo_id, "cache": "hub", "bytes": size, "path": path}


def _kept_models() -> Iterator[dict[str, Any]]:
    from bellm.io.cache import MODELS_KIND, cache_entries

    for entry in cache_entries([MODELS_KIND]):
        yield {"source": str(entry.path), "cache": "bellm", "bytes": entry.num_bytes, "path": str(entry.path)}
