"""The routes under /seqlora: what they show and change, and that hostile requests get a sentence and change nothing."""

import base64
import http.client
import io
import json
import random
from pathlib import Path
from urllib.parse import quote

import lora_files
import pytest
import torch
from banks import make_bank
from PIL import Image

from seqlora_core.bank import Bank, embedding_file

pytestmark = pytest.mark.slow

GETS = ("banks", "bank", "overlaps", "thumbnail")
POSTS = ("rename", "remove", "thumbnail", "export")
HOSTILE = [
    "..",
    "../routes",
    "/etc",
    "C:\\x",
    "a/b",
    "routes/../routes",
    "\x00",
    "con",
    "",
    " ",
    "x" * 5000,
    "\ud800",
    "%2e%2e",
]
HOSTILE += ["routes\n", "<script>", "'; --", "a:b", "routes.", "\u202e", "💥" * 99, ".lock", "concepts", "bank.json"]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def bank(host) -> Bank:
    return make_bank(host, "routes", 3)


@pytest.fixture
def ask(host):
    """One request on a connection that stays open: its status and its document or bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=30)

    def send(method: str, path: str, body: bytes | dict | None = None, headers: dict | None = None):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {**(JSON if body is not None else {}), **(headers or {})}
        connection.request(method, f"/api/seqlora/{path}", body, headers)
        response = connection.getresponse()
        content = response.read()
        is_json = "json" in response.getheader("Content-Type", "")
        return response.status, json.loads(content) if is_json else content

    yield send
    connection.close()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, except the locks that reading takes."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path): path.read_bytes() for path in files}


def test_a_bank_is_shown_with_its_concepts_and_thumbnails(bank, ask):
    _, listed = ask("GET", "banks")
    assert {"name": "routes", "concepts": 3} in listed["banks"]
    _, shown = ask("GET", "bank?bank=routes")
    concept = shown["concepts"][1]
    assert (concept["name"], concept["words"], concept["final_loss"]) == ("subject 1", "sks1 thing", 0.1)
    assert (shown["free"], shown["width"]) == (317, 320)
    _, image = ask("GET", f"thumbnail?bank=routes&id={concept['id']}")
    assert Image.open(io.BytesIO(image)).size == (64, 64)
    _, overlaps = ask("GET", "overlaps?bank=routes")
    assert max(value for _, _, value in overlaps["pairs"]) < overlaps["limit"]


def test_concepts_are_renamed_exported_and_removed_by_their_id(bank, ask, host):
    first, second, third = bank.concepts
    status, shown = ask("POST", "rename", {"bank": "routes", "id": first.id, "new_name": "owl"})
    assert status == 200 and shown["concepts"][0]["name"] == "owl"
    status, _ = ask("POST", "export", {"bank": "routes", "id": first.id, "file_name": "from the page"})
    assert status == 200 and (host.folder / "models" / "loras" / "from the page.safetensors").is_file()
    buffer = io.BytesIO()
    Image.new("RGB", (500, 300), "red").save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    status, _ = ask("POST", "thumbnail", {"bank": "routes", "id": second.id, "image": picture})
    assert status == 200
    _, image = ask("GET", f"thumbnail?bank=routes&id={second.id}")
    assert Image.open(io.BytesIO(image)).size[0] == 256
    assert ask("POST", "remove", {"bank": "routes", "id": third.id})[0] == 200
    status, answer = ask("POST", "remove", {"bank": "routes", "id": third.id})
    assert status == 404 and "refresh" in answer["error"]
    assert [concept.name for concept in bank.refresh().concepts] == ["owl", "subject 1"]
    assert bank.load()


def multipart(*files: tuple[str, bytes], boundary: str = "xyz") -> tuple[bytes, dict]:
    """The body and the headers of an upload."""
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode(
            "utf-8", "replace"
        )
        + content
        + b"\r\n"
        for name, content in files
    )
    return parts + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


IMPORT = "import?bank=routes&name=style&token=sksstyle&class_word=style"


def test_an_uploaded_lora_and_its_word_become_a_concept(bank, ask, host, tmp_path):
    file = lora_files.write(tmp_path / "style.safetensors", lora_files.random_adapters(bank), lora_files.kohya)
    word = embedding_file.serialize("sksstyle", torch.ones(2, 768))
    body, headers = multipart(("style.safetensors", file.read_bytes()), ("word.safetensors", word))
    status, answer = ask("POST", IMPORT, body, headers)
    assert status == 200 and "style" in answer["text"], answer
    added = bank.refresh().concepts[-1]
    assert (added.name, added.token, added.provenance.source, bool(added.embedding)) == (
        "style",
        "sksstyle",
        "style.safetensors",
        True,
    )
    status, answer = ask("POST", IMPORT, body, headers)
    assert status == 400 and "already has a concept" in answer["error"]
    assert list((host.folder / "temp").glob("seqlora-*")) == []
    bank.remove("style")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Origin": "https://example.com"}, 403), ({"Sec-Fetch-Site": "cross-site"}, 403), (JSON, 415)],
)
def test_an_upload_from_elsewhere_or_of_another_type_is_refused(bank, ask, headers, status):
    body, own = multipart(("style.safetensors", b"x"))
    assert ask("POST", IMPORT, body, {**own, **headers})[0] == status


@pytest.mark.parametrize("name", ["style.ckpt", "../style.safetensors", "C:\\style.safetensors", "con.safetensors", ""])
def test_an_upload_with_a_wrong_name_or_content_is_refused_with_a_sentence(bank, ask, name):
    body, headers = multipart((name, b"x"))
    status, answer = ask("POST", IMPORT, body, headers)
    assert status == 400 and answer["error"].endswith(".")


def test_an_upload_that_is_too_large_is_refused_before_it_is_sent(bank, host):
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=30)
    connection.putrequest("POST", f"/api/seqlora/{IMPORT}")
    for name, value in {**multipart()[1], "Content-Length": str(2**31)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://example.com"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_changes_from_elsewhere_or_of_another_type_are_refused(bank, ask, headers, status):
    body = {"bank": "routes", "id": bank.concepts[0].id}
    assert ask("POST", "remove", body, headers)[0] == status
    assert len(bank.refresh().concepts) == len(bank.concepts)


def test_a_request_that_is_too_large_is_refused(bank, ask):
    body = {"bank": "routes", "id": bank.concepts[0].id, "image": "A" * 2**22}
    assert ask("POST", "thumbnail", body)[0] == 413


def hostile_request(generator: random.Random, valid_id: str) -> tuple[tuple, set[int]]:
    """A request as `ask` takes it, and the statuses that it may get: wrong names, types, nesting, images, origins."""
    odd = [None, 7, -1.5, True, [], {}, ["routes"], {"a": 1}, *HOSTILE]
    bodies = [b"", b"{", b"[]", b"1", b"[" * 100000, b'{"bank": NaN}', b"\xff\xfe", b'"routes"']
    kind = generator.choice(["get", "post", "elsewhere", "type", "upload"])
    if kind == "get":
        names = [quote(generator.choice(HOSTILE).encode("utf-8", "replace")) for _ in range(2)]
        path = f"{generator.choice(GETS[1:])}?bank={names[0]}&id={names[1]}"
        return ("GET", path), {200, 400, 404}  # 200: a bank that does not exist yet
    if kind == "post":
        values = {name: generator.choice(odd) for name in ("id", "new_name", "file_name", "image")}
        values["bank"] = generator.choice(["routes", *odd])
        body = values if generator.random() < 0.9 else generator.choice(bodies)
        return ("POST", generator.choice(POSTS), body), {400, 404, 413}
    valid = {"bank": "routes", "id": valid_id, "new_name": "taken over"}
    if kind == "elsewhere":
        origins = ("https://example.com", "null", "http://127.0.0.1", "http://127.0.0.1.example.com", "file://", "x")
        sites = ("cross-site", "same-site", "SAME-ORIGIN ", "x")
        header = generator.choice([("Origin", o) for o in origins] + [("Sec-Fetch-Site", s) for s in sites])
        return ("POST", generator.choice((*POSTS, IMPORT)), valid, dict([header])), {403}
    if kind == "type":
        kinds = ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", "multipart/form-data", "x/")
        return ("POST", generator.choice(POSTS), valid, {"Content-Type": generator.choice(kinds)}), {415}
    content = generator.randbytes(generator.choice([0, 7, 8, 9, 4000]))
    content = generator.choice([content, (2**40).to_bytes(8, "little") + content, b"\x02\0\0\0\0\0\0\0{}"])
    names = [generator.choice([*HOSTILE, "a.safetensors", "../a.safetensors"]) for _ in range(generator.randrange(4))]
    body, headers = multipart(*((name, content) for name in names))
    body = generator.choice([body, body[: generator.randrange(len(body))], content, b""])
    query = {"bank": "routes", "name": "style", "token": "sks", "class_word": "style"}
    query[generator.choice(list(query))] = generator.choice([query["bank"], *HOSTILE])
    path = "&".join(f"{name}={quote(value.encode('utf-8', 'replace'))}" for name, value in query.items())
    return ("POST", f"import?{path}", body, headers), {400, 404}


def test_5000_hostile_requests_change_nothing(bank, ask, host):
    """Never a fault of the server, never a file outside."""
    before, generator = snapshot(host.folder / "models" / "seqlora"), random.Random(0)
    for number in range(5000):
        request, allowed = hostile_request(generator, bank.concepts[0].id)
        status, _ = ask(*request)
        assert status in allowed, (number, request)
    assert snapshot(host.folder / "models" / "seqlora") == before
    assert list((host.folder / "temp").glob("seqlora-*")) == []
    for file in ("routes.py", "uploads.py"):
        assert file not in host.log()  # no traceback goes through our code


def test_other_methods_do_not_reach_the_routes(bank, ask):
    for path in POSTS[:2]:
        assert ask("GET", f"{path}?bank=routes&id={bank.concepts[0].id}")[0] in (404, 405)
    assert ask("POST", "bank", {"bank": "routes"})[0] in (404, 405)
    assert len(bank.refresh().concepts) == len(bank.concepts)
