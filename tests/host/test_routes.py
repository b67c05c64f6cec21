"""The routes under /seqlora: what they show and change, and that hostile requests get a sentence and change nothing."""

import base64
import http.client
import io
import json
import random
from pathlib import Path
from urllib.parse import quote

import pytest
from banks import make_bank
from PIL import Image

from seqlora_core.bank import Bank

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


def test_thousands_of_hostile_requests_change_nothing(bank, ask, host):
    """Wrong names, types, nesting and images on every route; never a fault of the server, never a file outside."""
    before, generator = snapshot(host.folder / "models" / "seqlora"), random.Random(0)
    odd = [None, 7, -1.5, True, [], {}, ["routes"], {"a": 1}, *HOSTILE]
    bodies = [b"", b"{", b"[]", b"1", b"[" * 100000, b'{"bank": NaN}', b"\xff\xfe", b'"routes"']
    for number in range(3000):
        if number % 2:
            names = [generator.choice(HOSTILE).encode("utf-8", "replace") for _ in range(2)]
            path = f"{generator.choice(GETS[1:])}?bank={quote(names[0])}&id={quote(names[1])}"
            status, _ = ask("GET", path)
            allowed = {200, 400, 404}  # 200: a bank that does not exist yet
        else:
            values = {name: generator.choice(odd) for name in ("id", "new_name", "file_name", "image")}
            values["bank"] = generator.choice(["routes", *odd])
            body = values if generator.random() < 0.9 else generator.choice(bodies)
            status, _ = ask("POST", generator.choice(POSTS), body)
            allowed = {400, 404, 413}
        assert status in allowed, number
    assert snapshot(host.folder / "models" / "seqlora") == before
    assert "routes.py" not in host.log()  # no traceback goes through our code


def test_other_methods_do_not_reach_the_routes(bank, ask):
    for path in POSTS[:2]:
        assert ask("GET", f"{path}?bank=routes&id={bank.concepts[0].id}")[0] in (404, 405)
    assert ask("POST", "bank", {"bank": "routes"})[0] in (404, 405)
    assert len(bank.refresh().concepts) == len(bank.concepts)
