"""The routes below /seqlora (and /api/seqlora) by which the page's parts see and change banks.

Names come in, never paths, and are checked like those on nodes.  GET changes nothing.  A change is a POST with a small
JSON document, or with files to import, and only from a page of this server.
"""

import asyncio
import base64
import io
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from PIL import Image, ImageOps
from server import PromptServer

from ...seqlora_core.bank import Bank, Concept
from ...seqlora_core.bank.folder import read_thumbnail
from ...seqlora_core.bank.inspection import OVERLAP_LIMIT, inspect
from ...seqlora_core.bank.view import view
from ...seqlora_core.errors import UserError
from . import folders, runs, uploads
from .exporting import export_concept

MAX_BODY = 2**21  # bytes: a thumbnail of 256 px takes far less
_MAX_TEXT = 300  # characters of a name or id
_MAX_PIXELS = 2**24  # of an image for a thumbnail
_MAX_KEPT = 8  # measured banks
_measured: OrderedDict[str, dict] = OrderedDict()  # by the bank's cache key
_measuring = threading.Lock()  # one bank at a time: it reads every file

Values = Mapping[str, object]


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# What is shown


def list_banks(query: Values) -> dict:
    """All banks by name, with their numbers of concepts; one that cannot be read has a "problem" instead."""
    found = []
    for name in folders.bank_names():
        try:
            found.append({"name": name, "concepts": len(Bank.open(folders.bank_folder(name)).concepts)})
        except UserError as error:
            found.append({"name": name, "problem": str(error)})
    return {"banks": found}


def show_bank(query: Values) -> dict:
    """A bank's concepts and capacity; a "problem" where there is none yet, as a node may be about to make it."""
    try:
        bank = _bank(query)
    except Refused as error:
        if error.status != 404:
            raise
        return {"problem": str(error)}
    return {"name": bank.folder.name, **view(bank)}


def show_overlaps(query: Values) -> dict:
    """How far every pair of a bank's concepts overlaps, and damaged files; measured once per state of the bank."""
    bank = _bank(query)
    key = folders.bank_cache_key(bank.folder.name)
    with _measuring:
        if key not in _measured:
            result = inspect(bank)
            names = [concept.name for concept in bank.concepts]
            pairs = [[names.index(a), names.index(b), value] for (a, b), value in result.pairs.items()]
            _measured[key] = {"names": names, "pairs": pairs, "limit": OVERLAP_LIMIT, "problems": result.problems}
            while len(_measured) > _MAX_KEPT:
                _measured.popitem(last=False)
        return _measured[key]


def show_thumbnail(query: Values) -> bytes:
    """A concept's thumbnail, a WebP file."""
    bank = _bank(query)
    content = read_thumbnail(bank.folder, _concept(bank, query))
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise Refused(404, "The concept has no thumbnail.")
    return content


def show_run(query: Values) -> dict:
    """The latest training run of a node: see `runs.Run`; empty where there was none."""
    run = runs.find(_text(query, "workflow"), _text(query, "node"))
    return run.describe() if run is not None else {}


def show_preview(query: Values) -> bytes:
    """A preview of a training run, a JPEG file."""
    run, step = runs.find(_text(query, "workflow"), _text(query, "node")), _text(query, "step")
    content = run.previews.get(int(step)) if run is not None and step.isdecimal() else None
    if content is None:
        raise Refused(404, "There is no such preview.")
    return content


# What is changed


def rename(values: Values) -> dict:
    """Give a concept another name."""
    bank = _bank(values)
    bank.rename(_concept(bank, values).name, _text(values, "new_name"))
    return view(bank)


def remove(values: Values) -> dict:
    """Delete a concept."""
    bank = _bank(values)
    bank.remove(_concept(bank, values).name)
    return view(bank)


def replace_thumbnail(values: Values) -> dict:
    """Give a concept another thumbnail, from an image in base64."""
    bank = _bank(values)
    concept, image = _concept(bank, values), values.get("image")
    if not isinstance(image, str):
        raise Refused(400, "The request has no image.")
    bank.replace_thumbnail(concept.name, _decoded(image))
    return view(bank)


def export(values: Values) -> dict:
    """Write a concept where stock loaders find it."""
    bank = _bank(values)
    _, lines = export_concept(bank, _concept(bank, values).name, _text(values, "file_name", ""))
    return {"text": "\n".join(lines)}


def _text(values: Values, name: str, default: str | None = None) -> str:
    value = values.get(name, default)
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise Refused(400, f"The request needs {name}, a text of at most {_MAX_TEXT} characters.")
    return value


def _bank(values: Values) -> Bank:
    folder = folders.bank_folder(_text(values, "bank"))
    if not Bank.exists(folder):
        raise Refused(404, f"There is no bank {folder.name!r} in models/seqlora.")
    return Bank.open(folder)


def _concept(bank: Bank, values: Values) -> Concept:
    """The concept of the id in a request: a page may be older than the bank, and a name be another concept's by now."""
    wanted = _text(values, "id")
    found = next((concept for concept in bank.concepts if concept.id == wanted), None)
    if found is None:
        raise Refused(404, "The bank has changed and no longer has this concept: refresh the list.")
    return found


def _decoded(image: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(base64.b64decode(image, validate=True)), formats=["PNG", "JPEG", "WEBP"]) as file:
            if file.width * file.height > _MAX_PIXELS:
                raise UserError("The image has too many pixels for a thumbnail: scale it down.")
            return ImageOps.exif_transpose(file).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # on damaged files, Pillow raises almost anything
        raise UserError("The image cannot be read: choose a jpg, png or webp file.") from error


# HTTP


def check_same_origin(request: web.BaseRequest) -> None:
    """Refuse a request that another site's page has sent.

    Raises:
        Refused: it is one.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    own = origin is None or urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()
    if site not in ("same-origin", "none") if site is not None else not own:
        raise Refused(403, "Only a page of this ComfyUI may change banks.")


async def read_document(request: web.BaseRequest) -> dict:
    """The JSON object in a request's body.

    Raises:
        Refused: it has another type or is too large.
    """
    if request.content_type != "application/json":
        raise Refused(415, "The request has to be application/json.")
    body = b""
    async for chunk in request.content.iter_chunked(2**16):
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(413, f"The request is larger than {MAX_BODY // 2**20} MB.")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The request is not valid JSON.") from error
    if not isinstance(document, dict):
        raise Refused(400, "The request has to be a JSON object.")
    return document


async def _answer(action: Callable[[Values], dict | bytes], values: Values) -> web.Response:
    """Run an action in a thread, since it waits for disks and locks."""
    result = await asyncio.to_thread(action, values)
    if isinstance(result, bytes):
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        kind = "image/webp" if result[:4] == b"RIFF" else "image/jpeg"
        return web.Response(body=result, content_type=kind, headers=headers)
    return web.json_response(result, headers={"Cache-Control": "no-store"})


async def import_upload(request: web.Request) -> web.Response:
    """Add the files in a request to a bank; the query names the bank and the concept, and says whether to project.

    What the query says wrong is refused before anything is received.
    """
    check_same_origin(request)
    if request.content_type != "multipart/form-data":
        raise Refused(415, "The request has to be multipart/form-data.")
    query = {name: _text(request.query, name, "") for name in ("bank", "name", "token", "class_word", "project")}
    bank, spec = await asyncio.to_thread(_bank, query), uploads.spec_of(query)
    bank.require_free(spec.name)
    with uploads.temporary_folder() as folder:
        try:
            files = await uploads.receive(request, Path(folder))
        except uploads.TooLarge as error:
            raise Refused(413, f"The files are larger than {uploads.MAX_BYTES // 2**30} GB.") from error
        text = await asyncio.to_thread(uploads.import_files, bank, files, spec, query["project"] == "1")
    return web.json_response({"text": text}, headers={"Cache-Control": "no-store"})


def _guarded(handler: Callable) -> Callable:
    """Turn what an action raises into a JSON answer with one sentence."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    return answer


def getter(action: Callable[[Values], dict | bytes]) -> Callable:
    """A handler of GET: the action receives the query."""

    async def handle(request: web.Request) -> web.Response:
        return await _answer(action, request.query)

    return _guarded(handle)


def poster(action: Callable[[Values], dict]) -> Callable:
    """A handler of POST: the action receives the JSON document."""

    async def handle(request: web.Request) -> web.Response:
        check_same_origin(request)
        return await _answer(action, await read_document(request))

    return _guarded(handle)


ROUTES = [
    web.get("/seqlora/banks", getter(list_banks)),
    web.get("/seqlora/bank", getter(show_bank)),
    web.get("/seqlora/overlaps", getter(show_overlaps)),
    web.get("/seqlora/thumbnail", getter(show_thumbnail)),
    web.get("/seqlora/run", getter(show_run)),
    web.get("/seqlora/preview", getter(show_preview)),
    web.post("/seqlora/rename", poster(rename)),
    web.post("/seqlora/remove", poster(remove)),
    web.post("/seqlora/thumbnail", poster(replace_thumbnail)),
    web.post("/seqlora/export", poster(export)),
    web.post("/seqlora/import", _guarded(import_upload)),
]


def register_routes() -> None:
    """Add the routes to the host's, once; a host without a server, as in tests, has none."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    known = {(route.method, route.path) for route in server.routes if isinstance(route, web.RouteDef)}
    for route in ROUTES:
        if (route.method, route.path) not in known:
            server.routes.route(route.method, route.path)(route.handler)
