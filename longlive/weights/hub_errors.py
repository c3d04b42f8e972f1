"""What went wrong between us and the hub, in one line that says what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Errand:
    """What was wanted from where.

    Attributes:
        repo: Repository.
        revision: Its branch, tag or commit.
        endpoint: Address of the hub; None for the client's setting.
        folder: Where the files were to go.
        action: What was being done, as in "while fetching config.json".
    """

    repo: str
    revision: str
    endpoint: str | None
    folder: str
    action: str


def is_unreachable(error: Exception) -> bool:
    """Tell a hub that cannot be asked from one that gave an answer."""
    return getattr(error, "response", None) is None


def explain(error: Exception, errand: Errand) -> str:
    """Put an error of the hub's client into one line.

    The client wraps what it meets on the way to a file, and the HTTP library below it changes with
    its version, so errors are told apart by the client's own classes and by what they carry.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = errand.endpoint or constants.ENDPOINT
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    elif isinstance(error, OSError) and error.errno is not None:
        return (
            f"cannot write to {errand.folder} ({error.strerror}); make room there, or choose "
            "another folder"
        )
    known = _known_reason(error, errand, place)
    if known:
        return known
    if not is_unreachable(error):
        status = getattr(getattr(error, "response", None), "status_code", "an error")
        return f"{place} answered {status} while {errand.action} of {errand.repo}; try again later"
    detail = str(error).split("\n")[0] or type(error).__name__
    return (
        f"cannot reach {place} while {errand.action} of {errand.repo} ({detail}); check the "
        "connection, name a mirror as the endpoint, or copy the files by hand"
    )


def _known_reason(error: Exception, errand: Errand, place: str) -> str | None:
    from huggingface_hub import errors

    repo = errand.repo
    # A gated repository is also a repository that is not found: the order matters.
    reasons: dict[type[Exception], str] = {
        errors.OfflineModeIsEnabled: (
            f"cannot fetch {repo}: HF_HUB_OFFLINE is set; unset it, or copy the files by hand"
        ),
        errors.GatedRepoError: (
            f"{repo} wants its terms accepted: open {place}/{repo}, then run `hf auth login`"
        ),
        errors.RepositoryNotFoundError: (
            f"there is no {repo} at {place}, or it is private; check the endpoint, or run "
            "`hf auth login`"
        ),
        errors.RevisionNotFoundError: (
            f"{repo} has no revision {errand.revision}; choose a branch, tag or commit of it"
        ),
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), None)
