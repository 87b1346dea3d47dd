"""Docker's errors as reasons and sentences.

The engine passes on what registries, runc and the NVIDIA hook said, as text: what is known is recognised by
its words and said again so that the user knows what to do; the rest is shown as it came, first line only.
"""

import re
from typing import NamedTuple

from pwm.api.v1.common_pb2 import Reason
from pwm.nodeagent.drivers.docker_api import ApiError
from pwm.nodeagent.drivers.driver import ContainerMissing, DriverError, ImageMissing

# A sentence in a table, not a page.
MAX_MESSAGE_CHARS = 400
# As a shell ends for a command that does not exist, or that may not be run.
EXIT_COMMAND_NOT_FOUND = 127
EXIT_COMMAND_NOT_EXECUTABLE = 126


class _Known(NamedTuple):
    words: re.Pattern[str]
    code: Reason.Code.ValueType
    sentence: str
    exit_code: int | None = None


def _known(words: str, code: Reason.Code.ValueType, sentence: str, exit_code: int | None = None) -> _Known:
    return _Known(re.compile(words, re.IGNORECASE | re.DOTALL), code, sentence, exit_code)


_PULL = (
    _known(
        r"manifest (for .* )?(unknown|not found)|name unknown|repository .* not found|does not exist",
        Reason.IMAGE_NOT_PRESENT,
        "The image {image} does not exist in its registry, or is private; check its name and tag",
    ),
    _known(
        r"unauthorized|denied|no basic auth|authentication required|forbidden",
        Reason.PULL_FAILED,
        "The registry does not let this node pull {image}; name a Secret with a log-in for it in image.registrySecret",
    ),
    _known(
        r"toomanyrequests|rate limit",
        Reason.PULL_FAILED,
        "The registry refuses to send {image} for now, it was asked too often; try again later or log the node in",
    ),
    _known(r"no space left", Reason.DISK_FULL, "The node's disk is full: there is no room for the image {image}"),
    _known(
        r"no such host|dial |connection refused|connection reset|timeout|timed out|i/o |unreachable|tls|x509|EOF"
        r"|request canceled|server gave HTTP response",
        Reason.REGISTRY_UNREACHABLE,
        "The registry of {image} cannot be reached from this node: {detail}",
    ),
)

_START = (
    _known(
        r"exec(?: user process)?: \"(?P<what>[^\"]*)\": (?:executable file not found|.*no such file or directory)",
        Reason.COMMAND_NOT_FOUND,
        "The command {what!r} does not exist in the image {image}",
        EXIT_COMMAND_NOT_FOUND,
    ),
    _known(
        r"exec(?: user process)?: \"(?P<what>[^\"]*)\": (?:.*permission denied|.*is a directory)",
        Reason.ERROR_STARTING_CONTAINER,
        "The command {what!r} of the image {image} is not an executable file",
        EXIT_COMMAND_NOT_EXECUTABLE,
    ),
    _known(
        r"exec format error",
        Reason.ERROR_STARTING_CONTAINER,
        "The command cannot run on this node's kind of processor; is the image {image} made for it?",
        EXIT_COMMAND_NOT_EXECUTABLE,
    ),
    _known(
        r"could not select device driver \"?nvidia",
        Reason.ERROR_STARTING_CONTAINER,
        "Docker on this node cannot hand out GPUs; install nvidia-container-toolkit and restart Docker there",
    ),
    _known(
        r"nvidia-container-cli.*(unknown device|device error)",
        Reason.GPU_LOST,
        "A GPU that the container was given is no longer there: {detail}",
    ),
    _known(
        r"nvidia-container-cli",
        Reason.ERROR_STARTING_CONTAINER,
        "The node's NVIDIA software could not hand out the GPUs: {detail}",
    ),
    _known(r"no space left", Reason.DISK_FULL, "The node's disk is full: the container could not be started"),
    _known(
        r"no command specified",
        Reason.COMMAND_NOT_FOUND,
        "The image {image} has no command of its own; give one in config.cmd",
        EXIT_COMMAND_NOT_FOUND,
    ),
    _known(
        r"unable to find (user|group) ",
        Reason.ERROR_STARTING_CONTAINER,
        "The image {image} does not know the user it should run as: {detail}",
    ),
    _known(
        r"chdir to cwd",
        Reason.ERROR_STARTING_CONTAINER,
        "The working directory cannot be entered: {detail}",
    ),
)


def pull_error(image: str, message: str) -> DriverError:
    """Why an image could not be pulled."""
    return _recognise(
        _PULL, message, image, otherwise=(Reason.PULL_FAILED, "The image {image} could not be pulled: {detail}")
    )


def create_error(image: str, error: ApiError) -> DriverError:
    """Why a container could not be created."""
    if error.status == 404 and "image" in error.message.lower():
        return ImageMissing(f"The image {image} is not on this node")
    if error.status == 400 and "invalid reference format" in error.message:
        return DriverError(Reason.IMAGE_NOT_PRESENT, f"{image!r} is not a name of an image")
    return _recognise(
        _START,
        error.message,
        image,
        otherwise=(Reason.ERROR_CREATING_CONTAINER, "Docker could not create the container: {detail}"),
    )


def start_error(image: str, error: ApiError) -> DriverError:
    """Why a created container could not be started."""
    if error.status == 404 and "no such container" in error.message.lower():
        return ContainerMissing()
    return _recognise(
        _START,
        error.message,
        image,
        otherwise=(Reason.ERROR_STARTING_CONTAINER, "Docker could not start the container: {detail}"),
    )


def _recognise(
    table: tuple[_Known, ...], message: str, image: str, *, otherwise: tuple[Reason.Code.ValueType, str]
) -> DriverError:
    for known in table:
        if match := known.words.search(message):
            sentence = known.sentence.format(image=image, detail=_detail(message), **match.groupdict())
            return DriverError(known.code, _short(sentence), exit_code=known.exit_code)
    code, sentence = otherwise
    return DriverError(code, _short(sentence.format(image=image, detail=_detail(message))))


def _detail(message: str) -> str:
    """The last and most telling part of a chain of wrapped errors; one line."""
    line = message.strip().splitlines()[0] if message.strip() else "no explanation"
    return re.sub(
        r"^(failed to create (task|shim task)[^:]*|OCI runtime create failed|runc create failed|"
        r"Error response from daemon|container_linux\.go:\d+|unable to start container process)[^:]*: ",
        "",
        line,
    ).removesuffix(": unknown")


def _short(sentence: str) -> str:
    sentence = sentence.rstrip(". ")
    return sentence if len(sentence) <= MAX_MESSAGE_CHARS else sentence[: MAX_MESSAGE_CHARS - 1] + "…"
