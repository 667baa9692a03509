"""The page on this machine: what it answers, and what no request gets out of it."""

import http.client
import json
import threading
from contextlib import closing

import pytest

import bags
from abridged.core.errors import AbridgedError
from abridged.index.build import build
from abridged.index.search import Searcher, Together
from abridged.index.serve import serve
from bags import Bags
from colours import Pooled


@pytest.fixture
def server(model, folder):
    build(model, folder, embedder=Pooled)
    found = serve(Searcher(model, folder, embedder=Pooled))
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def get(server):
    """get("/path", Header=…) -> status, headers, body."""

    def ask(path, method="GET", **headers):
        connection = http.client.HTTPConnection(*server.server_address, timeout=20)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        with closing(connection):
            return answer.status, answer.headers, answer.read()

    return ask


def test_it_is_this_machine_only(server, get):
    assert server.server_address[0] == "127.0.0.1"
    for host, status in (
        ("localhost:99", 200),
        ("127.0.0.1", 200),
        ("evil.example", 403),
        ("evil.example:80", 403),
        ("", 403),
    ):
        assert get("/", Host=host)[0] == status
    with pytest.raises(AbridgedError, match="cannot serve on port"):
        serve(None, server.server_address[1])


def test_the_page_brings_all_that_it_needs(get):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, headers, body = get(path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"http:" not in body
        assert b"https:" not in body


def test_hits_come_with_where_and_when(get):
    status, _, body = get("/search?text=red&text=green")
    found = json.loads(body)
    assert status == 200
    assert found["hits"][0].keys() == {"path", "start", "end", "score", "content"}
    assert found["hits"][0]["path"] == "red-green.mp4"
    assert len(json.loads(get("/search?text=red&limit=1")[2])["hits"]) == 1
    for query in ("text=", "", "text=red&limit=many"):
        status, _, body = get(f"/search?{query}")
        assert status == 400
        assert json.loads(body)["error"]


def test_a_clip_comes_in_ranges(get, folder):
    hit = json.loads(get("/search?text=red&text=green")[2])["hits"][0]
    content = (folder / hit["path"]).read_bytes()
    path, size = f"/video/{hit['content']}", len(content)
    status, headers, body = get(path)
    assert (status, headers["Content-Type"], headers["Accept-Ranges"], body) == (200, "video/mp4", "bytes", content)
    status, headers, body = get(path, method="HEAD")
    assert (status, int(headers["Content-Length"]), body) == (200, size, b"")
    for asked, (start, stop) in {
        "bytes=0-": (0, size), "bytes=10-19": (10, 20), "bytes=-5": (size - 5, size), f"bytes=5-{size * 2}": (5, size),
    }.items():  # fmt: skip
        status, headers, body = get(path, Range=asked)
        assert (status, body) == (206, content[start:stop])
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
    for asked in (f"bytes={size}-", "bytes=-0", "bytes=5-4", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        status, headers, _ = get(path, Range=asked)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")


@pytest.mark.parametrize(
    "path",
    [
        "/video/999", "/video/../../etc/passwd", "/video/%2e%2e%2fconfig.json", "/video/1/../../x", "/video/",
        "/video/-1", "/video/1%00", "/../page.html", "//etc/passwd", "/page.html",
        "/.abridged-index.sqlite", "/red-green.mp4",
        "/video/%D9%A3", f"/video/{'9' * 400}",
    ],
)  # fmt: skip
def test_no_request_reaches_another_file(get, path):
    status, _, body = get(path)
    assert (status, body) == (404, b"")


def test_a_file_that_is_gone_is_not_found(get, folder):
    hit = json.loads(get("/search?text=red&text=green")[2])["hits"][0]
    (folder / hit["path"]).unlink()
    assert get(f"/video/{hit['content']}")[0] == 404


def test_it_says_what_is_searched_and_passages_come_with_their_text(get, model, folder, tmp_path):
    assert json.loads(get("/about")[2]) == {"reads": ["videos"]}
    notes = bags.write(tmp_path / "notes")
    build(model, notes, embedder=Bags)
    both = Together([Searcher(model, notes, embedder=Bags), Searcher(model, folder, embedder=Pooled)])
    with serve(both) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection(*found.server_address, timeout=20)
        answers = []
        for path in ("/about", "/search?text=green", "/search?text=red&text=green"):
            connection.request("GET", path)
            answers.append(json.loads(connection.getresponse().read()))
        connection.close()
        found.shutdown()
    assert answers[0] == {"reads": ["texts", "videos"]}
    passage, moment = answers[1]["hits"][:2]
    assert passage.keys() == {"path", "line", "last_line", "text", "score", "content"}
    assert "green light" in passage["text"]
    assert moment.keys() == {"path", "start", "end", "score", "content"}
    assert all("start" in hit for hit in answers[2]["hits"])  # what comes after what is told of videos alone
