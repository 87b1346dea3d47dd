"""What a request to apply says: its documents, one after the other, and where in their text a complaint belongs.

Clients send text as users wrote it. It is cut into documents (`pwm/manifest`), each is read alone and checked
(`core/manifest`), and what cannot be read is a refused document like any other. Nothing is applied before all is read.

The server answers others meanwhile: how many documents there may be is known before one is read, a document has at
most 48 KiB, small ones take their turn in the event loop, and larger ones are read in a thread. What a document's text
was is kept until its result is there; positions are looked up then, for the documents that have something wrong.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from pwm.api.v1.services_pb2 import ApplyRequest, ApplyResult, Manifest, Problem
from pwm.controlplane.core.document import INVALID_ARGUMENT
from pwm.controlplane.core.manifest import MAX_DOCUMENT_BYTES, Parsed, Refused, parse_document
from pwm.controlplane.errors import ApiError, invalid
from pwm.manifest.cutting import Chunk, ManifestError, Place, cut, most_documents
from pwm.manifest.documents import Positions, read

# Ten times what the command line puts into a request. Each may be answered with 30 problems.
MAX_DOCUMENTS = 2_000
# Read in about a millisecond. Larger documents are read in a thread, where others wait 5 ms for the interpreter.
INLINE_BYTES = 2 * 1024
# JSON grows at most sixfold when it becomes a Struct; beyond that a document need not be unpacked to be too large.
MAX_STRUCT_BYTES = 8 * MAX_DOCUMENT_BYTES
# No file has so many lines; results have room for it and for the lines after it.
LAST_LINE = 2**30

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A document without its content, of which only the meaning is kept: the text, and where in it that is."""

    chunk: Chunk
    start: Place
    prefix: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One document of a request: what it means, or why it means nothing; and where it was written."""

    meaning: Parsed | ApplyResult
    manifest: int = 0
    # None: it came as JSON, or cannot be read.
    document: Written | None = None


async def read_request(request: ApplyRequest, *, group: str) -> list[Reading]:
    """All documents of a request, in order. Raises ApiError when there are too many."""
    _check(request)
    readings: list[Reading] = []
    for document in request.documents:
        readings.append(await _turn(document.ByteSize(), _read_struct, document, group))
    async for index, chunk in _chunks(request.manifests):
        if isinstance(chunk, ManifestError):
            readings.append(Reading(_unreadable(chunk), index))
            continue
        readings += await _turn(len(chunk.text), _read_chunk, chunk, group, index)
        if len(readings) > MAX_DOCUMENTS:  # there was a list of them
            raise _too_many()
    return readings


def _check(request: ApplyRequest) -> None:
    if len(request.documents) + len(request.manifests) > MAX_DOCUMENTS:
        raise _too_many()
    if len(request.documents) + sum(most_documents(manifest.text) for manifest in request.manifests) > MAX_DOCUMENTS:
        raise _too_many()
    for index, manifest in enumerate(request.manifests):
        if not 0 <= manifest.first_line <= LAST_LINE:
            raise invalid(f"manifests[{index}].firstLine is {manifest.first_line}, and lines are counted from 1")


async def locate(readings: Sequence[Reading], results: Sequence[ApplyResult]) -> None:
    """Says in each result which manifest it is of, and where; and where each problem and warning stands."""
    known: Chunk | None = None
    positions: Positions | None = None
    for reading, result in zip(readings, results, strict=True):
        result.manifest = reading.manifest
        document = reading.document
        if document is None:
            continue
        result.line, result.column = document.start.line, document.start.column
        problems = [*result.problems, *result.warnings]
        if problems and document.chunk is not known:  # the documents of a list share one
            known = document.chunk
            positions = await _turn(len(known.text), Positions, known)
        for problem in problems:
            assert positions is not None
            place = positions.find(problem.field, below=document.prefix)
            problem.line, problem.column = place.line, place.column


async def _turn(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Does a piece of work so that nobody waits long for it: other tasks run before it, or beside it."""
    if size > INLINE_BYTES:
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    await asyncio.sleep(0)
    return work(*arguments)


async def _chunks(manifests: Sequence[Manifest]) -> AsyncIterator[tuple[int, Chunk | ManifestError]]:
    """The documents of all manifests, unread, each with the index of its manifest."""
    for index, manifest in enumerate(manifests):
        for chunk in await _turn(len(manifest.text), _cut, manifest):
            yield index, chunk


def _cut(manifest: Manifest) -> list[Chunk | ManifestError]:
    return list(cut(manifest.text, first_line=max(1, manifest.first_line)))


def _read_chunk(chunk: Chunk, group: str, manifest: int) -> list[Reading]:
    try:
        documents = read(chunk)
    except ManifestError as error:
        return [Reading(_unreadable(error), manifest)]
    if len(documents) > MAX_DOCUMENTS:
        raise _too_many()
    return [
        Reading(_meaning(document.content, group), manifest, Written(chunk, document.start, document.prefix))
        for document in documents
    ]


def _read_struct(document: Struct, group: str) -> Reading:
    if document.ByteSize() > MAX_STRUCT_BYTES:
        said = f"the document is far larger than the {MAX_DOCUMENT_BYTES // 1024} KiB that it may have"
        step = "put large data into a volume or into the image"
        problem = Problem(message=said, next_step=step, code=INVALID_ARGUMENT)
        return Reading(ApplyResult(outcome=ApplyResult.REFUSED, problems=[problem]))
    return Reading(_meaning(json_format.MessageToDict(document), group))


def _meaning(tree: dict[str, Any], group: str) -> Parsed | ApplyResult:
    try:
        return parse_document(tree, default_group=group)
    except Refused as error:
        metadata = tree.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        return ApplyResult(
            outcome=ApplyResult.REFUSED,
            kind=str(tree.get("kind") or ""),
            name=str(metadata.get("name") or ""),
            group=str(metadata.get("group") or metadata.get("workspace") or group),
            problems=error.problems,
        )


def _unreadable(error: ManifestError) -> ApplyResult:
    problem = Problem(
        message=error.message,
        next_step=error.next_step,
        code=INVALID_ARGUMENT,
        line=error.place.line,
        column=error.place.column,
    )
    return ApplyResult(outcome=ApplyResult.REFUSED, problems=[problem])


def _too_many() -> ApiError:
    return invalid(f"more than {MAX_DOCUMENTS:,} documents", next_step="send them in several requests")
