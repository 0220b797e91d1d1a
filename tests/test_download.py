"""download_data.sh against a real HTTP server on loopback."""
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs bash and curl")


def archive(entries):
    """A .tar.gz of {name: bytes, or (link type, target)}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


WHOLE = archive({"market/index.p": b"an index", "market/images/a.jpg": os.urandom(300000)})


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` as /market.tar.gz; breaks off once, after `breaks_after` bytes."""
    content, breaks_after, ranges = WHOLE, None, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        if self.path != "/market.tar.gz":
            return self.send_error(404)
        start = int(wanted[len("bytes="):].split("-")[0]) if wanted and server.ranges else 0
        if start >= len(server.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        end, server.breaks_after = server.breaks_after, None
        self.wfile.write(server.content[start:end])

    def log_message(self, *unused):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def repository(tmp_path):
    """A folder with the script in it, as in a clone, and with a space in its name."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copy(os.path.join(ROOT, "download_data.sh"), str(folder))
    return folder


def run(repository, server, *arguments, cwd=None, url=None):
    url = url or f"http://127.0.0.1:{server.server_address[1]}"
    return subprocess.run(["bash", str(repository / "download_data.sh")] + list(arguments), cwd=str(cwd or repository),
                          env=dict(os.environ, VUNET_DATA_URL=url, no_proxy="127.0.0.1"), capture_output=True,
                          text=True, timeout=100)


def assert_ready(repository):
    assert (repository / "data" / "market" / "index.p").read_bytes() == b"an index"
    assert (repository / "data" / "market" / "images" / "a.jpg").stat().st_size == 300000


@pytest.mark.parametrize("target", ["data", "elsewhere", "../out side/here", "ABSOLUTE"])
def test_the_index_resolves_from_the_repository_wherever_the_data_is(repository, server, tmp_path, target):
    target = target.replace("ABSOLUTE", str(tmp_path / "abso lute"))
    for _ in range(2):
        result = run(repository, server, "market", target)
        assert result.returncode == 0, result.stderr
        assert_ready(repository)
    assert len(server.requests) == 1
    assert (repository / "data" / "market").is_symlink() == (target != "data")
    assert sorted(path.name for path in (repository / target).iterdir()) == ["market"]


def test_a_target_is_relative_to_the_working_directory(repository, server, tmp_path):
    assert run(repository, server, "market", "here", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here" / "market" / "index.p").exists()
    assert_ready(repository)


def test_a_broken_download_is_resumed(repository, server):
    server.breaks_after = 100000
    result = run(repository, server, "market", "data")
    assert result.returncode == 1 and "broke off" in result.stderr and "run this again" in result.stderr
    assert not (repository / "data" / "market").exists()
    result = run(repository, server, "market", "data")
    assert result.returncode == 0, result.stderr
    assert server.requests[-1] == "bytes=100000-"
    assert_ready(repository)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_complete_is_not_fetched_in_vain(repository, server, ranges):
    (repository / "data").mkdir()
    (repository / "data" / "market.tar.gz.part").write_bytes(WHOLE)
    server.ranges = ranges
    assert run(repository, server, "market", "data").returncode == 0
    assert_ready(repository)


def test_a_server_that_cannot_resume_starts_over(repository, server):
    (repository / "data").mkdir()
    (repository / "data" / "market.tar.gz.part").write_bytes(WHOLE[:1000])
    server.ranges = False
    result = run(repository, server, "market", "data")
    assert result.returncode == 0, result.stderr
    assert_ready(repository)


def test_what_is_not_a_whole_archive_is_not_unpacked(repository, server):
    server.content = WHOLE[:-5000]
    result = run(repository, server, "market", "data")
    assert result.returncode == 1 and "not a whole .tar.gz" in result.stderr
    assert list((repository / "data").iterdir()) == []


@pytest.mark.parametrize("name, content", [
    ("../evil", b"x"), ("/tmp/evil", b"x"), ("market/../../evil", b"x"), ("market/link", (tarfile.SYMTYPE, "/etc")),
    ("market/hard", (tarfile.LNKTYPE, "../../evil")), ("market/pipe", (tarfile.FIFOTYPE, ""))])
def test_entries_that_would_land_outside_are_refused(repository, server, name, content):
    server.content = archive({"market/index.p": b"an index", name: content})
    result = run(repository, server, "market", "data")
    assert result.returncode == 1 and "refused" in result.stderr
    assert not (repository / "data" / "market").exists()
    assert not (repository / "evil").exists() and not (repository.parent / "evil").exists()


def test_an_archive_without_the_folder_serves_too(repository, server):
    server.content = archive({"index.p": b"an index", "images/a.jpg": os.urandom(300000)})
    assert run(repository, server, "market", "data").returncode == 0
    assert_ready(repository)


def test_file_urls_serve(repository, server, tmp_path):
    (tmp_path / "market.tar.gz").write_bytes(WHOLE)
    result = run(repository, server, "market", "data", url="file://" + str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert_ready(repository)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", None])
def test_a_server_that_is_away_is_named_with_other_ways_to_get_data(repository, server, url):
    result = run(repository, server, "coco" if url is None else "market", "data", url=url)
    error = result.stderr.splitlines()[-1]  # after curl's own lines
    assert result.returncode == 1 and error.startswith("error: cannot download")
    for words in ("https://heibox.uni-heidelberg.de/d/71842715a8/", "VUNET_DATA_URL", "docs/data.md", "make train"):
        assert words in error
    assert os.path.isfile(os.path.join(ROOT, "docs", "data.md"))


def test_the_data_may_move_into_the_repository_after_a_link_to_elsewhere(repository, server):
    assert run(repository, server, "market", "elsewhere").returncode == 0
    assert run(repository, server, "market", "data").returncode == 0
    assert_ready(repository)
    shutil.rmtree(str(repository / "elsewhere"))  # now the link leads nowhere
    assert run(repository, server, "market", "data").returncode == 0
    assert_ready(repository)


def test_a_refused_archive_does_not_block_a_good_one(repository, server):
    server.content = archive({"market/index.p": b"an index", "../evil": b"x"})
    assert run(repository, server, "market", "data").returncode == 1
    server.content = WHOLE
    assert run(repository, server, "market", "data").returncode == 0
    assert_ready(repository)


def test_what_stands_in_the_way_is_not_removed(repository, server):
    (repository / "data" / "market").mkdir(parents=True)
    (repository / "data" / "market" / "mine").write_text("precious")
    for target in ("data", "elsewhere"):
        result = run(repository, server, "market", target)
        assert result.returncode == 1 and "move it away" in result.stderr
    assert (repository / "data" / "market" / "mine").read_text() == "precious"


@pytest.mark.parametrize("arguments", [(), ("market",), ("mnist", "data"), ("market", "data", "more"), ("market", "")])
def test_bad_arguments(repository, server, arguments):
    result = run(repository, server, *arguments)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "expected coco" in result.stderr or "usage" in result.stderr
