"""Where a model lies: names such as ``hf:owner/repo`` and ``ollama:name`` become paths."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import FormatError, UnsupportedError, wrong
from .gguf import SHARD

__all__ = ["locate"]


def locate(source: Any) -> Any:
    """Return the local path of a model that is given by name, downloaded if need be.

    Parameters
    ----------
    source : object
        A str that begins with one of `SCHEMES` and a colon is a name. Anything else, such as a
        path or the contents of a file, is returned unchanged. A file whose name begins like that
        is ``./hf:name``.

    Returns
    -------
    object
        A path, or `source`.

    Raises
    ------
    ValueError
        If a name has the wrong form, or leaves a choice between files.
    OSError
        If there is no such model, or it cannot be downloaded.
    ImportError
        If a package is missing that the name needs.

    Examples
    --------
    >>> from tinyllm.files.sources import locate
    >>> locate("model.gguf")
    'model.gguf'
    """
    if not isinstance(source, str):
        return source
    scheme, colon, rest = source.partition(":")
    find = SCHEMES.get(scheme) if colon else None
    return source if find is None else find(source, rest)


def _missing(text: str, name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, text, name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


# ---- Hugging Face ----

_HUB_NAME = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/:@]+))?(/(?P<file>.+)|:(?P<choice>[\w.-]+))?",
    re.ASCII,
)


def _hub(name: str, rest: str) -> str:
    """Return the path of a GGUF file of a Hugging Face repository, in the cache of that library."""
    match = _HUB_NAME.fullmatch(rest)
    if match is None:
        raise ValueError(
            f"path is {name!r}; expected hf:owner/repo, hf:owner/repo/file.gguf or "
            "hf:owner/repo:Q4_K_M; hf:owner/repo@revision chooses a revision"
        )
    try:
        import huggingface_hub as hub
        import huggingface_hub.errors  # some versions load it on demand
    except ImportError as error:
        raise ImportError(
            f"{name} needs huggingface_hub: pip install huggingface_hub", name=error.name
        ) from error
    repo, file = match["repo"], match["file"]
    revision = match["revision"] and unquote(match["revision"])
    try:
        files, problem = _hub_files(hub, repo, revision)
        if file is None:
            file = _choose(name, files, match["choice"])
        elif problem is not None and file not in files:
            raise problem
        # without a server the library would try again for half a minute, and then take the cache
        offline = problem is not None
        parts = [
            hub.hf_hub_download(repo, part, revision=revision, local_files_only=offline)
            for part in _parts(file)
        ]
    except Exception as error:
        raise _hub_error(hub, name, error) from error
    return str(parts[0])


def _hub_files(hub: Any, repo: str, revision: str | None) -> tuple[list[str], Exception | None]:
    """Return the files of a repository.

    If the server cannot be reached, those in the cache, and what went wrong.
    """
    try:
        info = hub.HfApi().model_info(repo, revision=revision)
        return [file.rfilename for file in info.siblings or ()], None
    except hub.errors.HfHubHTTPError:
        raise  # an answer of the server
    except Exception as error:
        found = _cached_files(hub, repo, revision)
        if not found:
            raise
        return found, error


def _cached_files(hub: Any, repo: str, revision: str | None) -> list[str]:
    try:
        repos = hub.scan_cache_dir().repos
    except hub.errors.CacheNotFound:
        return []
    for entry in repos:
        if entry.repo_id != repo or entry.repo_type != "model":
            continue
        for snapshot in entry.revisions:
            if (revision or "main") in snapshot.refs or revision == snapshot.commit_hash:
                return [
                    file.file_path.relative_to(snapshot.snapshot_path).as_posix()
                    for file in snapshot.files
                ]
    return []


def _choose(name: str, files: list[str], choice: str | None) -> str:
    """Return the one GGUF file of a repository that holds a model and fits the choice."""
    models = [
        file
        for file in files
        if file.endswith(".gguf")
        and not re.search(r"(^|[/._-])(mmproj|imatrix)([/._-])", file, re.IGNORECASE)
        and ((shard := SHARD.fullmatch(file)) is None or int(shard["number"]) == 1)
    ]
    if not models:
        what = "no GGUF file"
        if any(file.endswith((".safetensors", ".bin")) for file in files):
            what += (
                ", but a checkpoint in another format; look for a repository whose name ends in "
                "GGUF, or download it and call tinyllm.convert"
            )
        raise _missing(f"the repository has {what}", name)
    fitting = models
    if choice is not None:
        wanted = re.compile(rf"(^|[/._-]){re.escape(choice)}([/._-])", re.IGNORECASE)
        fitting = [file for file in models if wanted.search(file)]
        if not fitting:
            raise _missing(
                f"no GGUF file of the repository is {choice!r}; it has {_listed(models)}", name
            )
    if len(fitting) > 1:
        repo = name.rpartition(":")[0] if choice is not None else name
        raise ValueError(
            f"{name} has {len(fitting)} GGUF files; expected one of them, as in "
            f"{repo}/{min(fitting)}: {_listed(fitting)}"
        )
    return fitting[0]


def _parts(file: str) -> list[str]:
    """Return all files of a model, given its first."""
    shard = SHARD.fullmatch(file)
    if shard is None or int(shard["number"]) != 1:
        return [file]
    count = int(shard["count"])
    return [f"{shard['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]


def _hub_error(hub: Any, name: str, error: Exception) -> Exception:
    """Return an error of huggingface_hub as a builtin exception that has the name."""
    if (isinstance(error, OSError) and error.filename == name) or type(error) is ValueError:
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, hub.errors.GatedRepoError):
        return PermissionError(errno.EACCES, text, name)
    missing = (
        hub.errors.RepositoryNotFoundError,
        hub.errors.RevisionNotFoundError,
        hub.errors.EntryNotFoundError,
    )
    if isinstance(error, missing):
        return _missing(text, name)
    if isinstance(error, ValueError):  # the library's rules for names
        return ValueError(f"path is {name!r}: {text}")
    return OSError(errno.EIO, text, name)


# ---- Ollama ----

_MODEL_LAYER = "application/vnd.ollama.image.model"
_ADAPTER_LAYER = "application/vnd.ollama.image.adapter"
_DEFAULT = ("registry.ollama.ai", "library")


def _ollama(name: str, rest: str) -> str:
    """Return the path of a model in Ollama's local store. No server is asked."""
    stores = _ollama_stores()
    models = {model: manifest for store in stores for model, manifest in _installed(store)}
    wanted = rest if ":" in rest.rpartition("/")[2] else f"{rest}:latest"
    found = [manifest for model, manifest in models.items() if model.lower() == wanted.lower()]
    if not found:
        where = " and ".join(map(str, stores))
        raise _missing(
            f"no model {wanted!r} in Ollama's store {where}; it has {_listed(models)}", name
        )
    manifest = found[0]
    try:
        digests = _layers(manifest)
    except FormatError as error:
        error.path = str(manifest)
        raise
    if _ADAPTER_LAYER in digests:
        raise UnsupportedError(
            f"{name}: the model has an adapter; expected a model of its own, such as the one it "
            "was made from"
        )
    if _MODEL_LAYER not in digests:
        raise UnsupportedError(
            f"{name}: the model is not a GGUF file; its parts are {_listed(set(digests))}"
        )
    blob = manifest.parents[4] / "blobs" / digests[_MODEL_LAYER].replace(":", "-")
    if not blob.is_file():
        raise _missing(f"its file {blob} is missing; ollama pull {rest} fetches it", name)
    return str(blob)


def _ollama_stores() -> list[Path]:
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [Path(chosen)]
    # the second is that of the service which Ollama's installer for Linux sets up
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def _installed(store: Path) -> Iterator[tuple[str, Path]]:
    """Yield the models of a store: names as Ollama shows them, and manifests."""
    for manifest in sorted(store.glob("manifests/*/*/*/*")):
        host, namespace, model, tag = manifest.parts[-4:]
        path = [host, namespace, model]
        for default in _DEFAULT:
            if path[0] != default:
                break
            del path[0]
        yield f"{'/'.join(path)}:{tag}", manifest


def _layers(manifest: Path) -> dict[str, str]:
    """Return the digests of a model's parts by media type; the first of each type counts."""
    try:
        content = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the manifest is not valid JSON: {error}", field="manifest") from None
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise wrong("layers", f"{layers!r:.80}", "a list of objects")
    digests: dict[str, str] = {}
    for layer in layers:
        digest = layer.get("digest")
        if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            raise wrong("digest", f"{digest!r:.80}", "sha256: and 64 hexadecimal digits")
        digests.setdefault(str(layer.get("mediaType")), digest)
    return digests


# ---- web addresses ----


def _web(name: str, rest: str) -> str:
    found = re.match(r"//(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", rest, re.ASCII)
    hint = f"hf:{found[1]} downloads the model" if found else "download the file, and pass its path"
    raise ValueError(f"path is {name!r}, a web address, which is not opened; {hint}")


#: How a name begins, and what finds the path. The function gets the whole name and the rest of it.
SCHEMES: dict[str, Callable[[str, str], str]] = {
    "hf": _hub,
    "ollama": _ollama,
    "http": _web,
    "https": _web,
}
