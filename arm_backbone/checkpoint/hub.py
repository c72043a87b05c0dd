"""Finds files on the Hugging Face hub, wherever a checkpoint or a published folder is named.

A name is `hf://OWNER/NAME[/FILE][@REVISION]`, or the hub's own form `hf://OWNER/NAME[@REVISION][/FILE]`. Cache, offline
mode, server and access token are those of huggingface_hub (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, `hf auth login`).
"""

import glob
import os
import re
from typing import NamedTuple
from urllib.parse import unquote

from .errors import CheckpointError
from .folder import CONFIG, WEIGHTS

# all that is downloaded of a repository without a file name
FILES = (CONFIG, WEIGHTS)
_NAME = re.compile(
    r"hf:/{1,2}"  # pathlib makes one slash of two
    r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?"
    r"(?:/(?P<file>[^@]*[^/@]))?(?:@(?P<last>[^@]+))?/?"
)


class HubName(NamedTuple):
    """A repository of the hub, or a file in it.

    Attributes:
        repo: OWNER/NAME.
        file: path in the repository; None for the repository.
        revision: branch, tag or commit; None for the main branch.
    """

    repo: str
    file: str | None
    revision: str | None


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether a path is a name on the hub."""
    return os.fspath(name).startswith("hf:/")


def parse_name(name: str | os.PathLike) -> HubName:
    """Take a name on the hub apart.

    Raises:
        CheckpointError: if it has another form.
    """
    found = _NAME.fullmatch(os.fspath(name))
    if not found or (found["revision"] and found["last"]):
        raise CheckpointError(f"{name}: give hf://OWNER/NAME, hf://OWNER/NAME/FILE, and perhaps @REVISION at the end")
    revision = found["revision"] or found["last"]
    return HubName(found["repo"], found["file"], revision and unquote(revision))


def local_path(name: str | os.PathLike) -> str:
    """The file or folder on this machine for a name on the hub; any other path as it is.

    The file, or `FILES` of a repository, are downloaded unless the cache has them. Without a connection the cache
    alone is used.

    Raises:
        CheckpointError: naming the repository, the file and what to do.
    """
    if not is_hub_name(name):
        return os.fspath(name)
    from huggingface_hub import constants, errors, snapshot_download

    repo, file, revision = parse_name(name)
    where, of = f"{constants.ENDPOINT}/{repo}", f" (revision {revision})" if revision else ""
    name, listing = f"hf://{repo}{f'/{file}' if file else ''}{of}", f"{where}/tree/{revision or 'main'}"
    wanted = [glob.escape(file)] if file else list(FILES)
    try:  # not hf_hub_download, which tries for half a minute where nothing answers
        folder = snapshot_download(repo, revision=revision, allow_patterns=wanted)
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name} {_unreachable(error, constants)}") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{name}: access is restricted; ask for it on {where}, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: {where} does not exist or is private; correct the name, or `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: {where} has no such revision; give a branch, a tag or a commit") from None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name}: {_first_line(error)}") from None
    except Exception as error:  # noqa: BLE001 network libraries have errors of their own, which change with versions
        raise CheckpointError(
            f"{name} cannot be downloaded from {constants.ENDPOINT} ({_first_line(error)}); try again, or give the "
            "path of a file"
        ) from None
    found = [entry for entry in ([file] if file else FILES) if os.path.isfile(os.path.join(folder, entry))]
    if found:
        return os.path.join(folder, file) if file else folder
    if constants.is_offline_mode():
        raise CheckpointError(f"{name} {_unreachable(None, constants)}")
    what = "no such file" if file else f"neither {' nor '.join(FILES)}; name a file of it: hf://{repo}/FILE"
    raise CheckpointError(f"{name}: the repository has {what}; see {listing}")


def _unreachable(error: Exception | None, constants) -> str:
    """Why the hub was not asked, and what to do."""
    cache = f"the cache {constants.HF_HUB_CACHE}"
    if constants.is_offline_mode():
        return f"is not in {cache}, and HF_HUB_OFFLINE is set; unset it, or download the file and give its path"
    cause = error and error.__cause__
    reason = f" ({_first_line(cause)})" if cause is not None else ""
    return (
        f"is not in {cache}, and {constants.ENDPOINT} cannot be reached{reason}; check the connection, or download the "
        "file elsewhere and give its path"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
