"""Ask the Hub, without retries, whether it has a repository (libraries ask for a minute), and fetch its files."""

import os
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from bellm.errors import SourceError


def hub_problem(repo_id: str, *, repo_type: str = "model", revision: str | None = None) -> str:
    """Why the Hub does not give a repository, in words; empty if it does."""
    file = "config.json" if repo_type == "model" else "README.md"
    try:
        url = huggingface_hub.hf_hub_url(repo_id, file, repo_type=repo_type, revision=revision)
        huggingface_hub.get_hf_file_metadata(url)
    except errors.RevisionNotFoundError:
        return f"the Hub has no revision {revision} of it"
    except errors.EntryNotFoundError:  # The repository is there. An adapter has no config.json.
        return ""
    except errors.RepositoryNotFoundError:
        return "the Hub has none of that name for you (hf auth login opens private ones)"
    except errors.OfflineModeIsEnabled:
        return "the Hub is not asked while HF_HUB_OFFLINE is set"
    except Exception as error:  # What the Hub's client raises depends on its version.
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"the Hub cannot be reached ({reason[:120]})"
    return ""


def cached_folder(repo_id: str, *, revision: str | None = None) -> str | None:
    """Folder of what the Hub sent of a model before, or None."""
    for name in ("config.json", "bellm.json", "adapter_config.json"):
        try:
            path = huggingface_hub.try_to_load_from_cache(repo_id, name, revision=revision)
        except errors.HFValidationError:  # No repository can have this name.
            return None
        if isinstance(path, str):
            return str(Path(path).parent)
    return None


def fetch_files(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Folder of a model's files on the Hub that match one of the patterns, fetched where necessary."""
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        name = f"{repo_id}@{revision}" if revision else repo_id
        raise SourceError(f"{name} cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error


def refuse_missing_data(repo_id: str, revision: str | None = None) -> None:
    """Refuse a data set that the Hub does not give, unless `datasets` may have kept it."""
    kept = Path(os.environ.get("HF_DATASETS_CACHE") or f"{constants.HF_HOME}/datasets", repo_id.replace("/", "___"))
    if constants.HF_HUB_OFFLINE or kept.is_dir():
        return
    if problem := hub_problem(repo_id, repo_type="dataset", revision=revision):
        raise SourceError(f"{problem}.")
