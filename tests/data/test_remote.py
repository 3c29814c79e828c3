"""URLs are downloaded whole and once, copies get numbered names, and messages show no secrets."""

import gzip
import json
import os
import shutil
import socket
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from moebius.config import DataConfig
from moebius.data import prepare
from moebius.data.remote import download, outdated
from moebius.data.source_names import check_commas
from moebius.data.sources import documents
from moebius.data.tally import HIDDEN, NOT_ENTERED, PassedOver, Tally
from moebius.errors import ConfigError, DataError, MoebiusError, StorageError
from tests.data.files import COMPRESSIONS, CONTENTS, TEXTS


@pytest.fixture
def bucket():
    """A folder in fsspec's file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for name, data in {
        "bucket/b.txt": b"b",
        "bucket/a/rows.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
        "bucket/a/b.txt": b"another b",
        "bucket/.git/config": b"hidden",
        "bucket/picture.png": b"\x89PNG\0\xff",
    }.items():
        system.pipe_file(f"/{name}", data)
    return system


def texts(source: str, cache: Path, **settings) -> list[str]:
    return [
        document.text
        for document in documents(DataConfig(source=source, cache=str(cache), **settings))
    ]


def test_a_folder_a_glob_and_a_file(bucket, tmp_path):
    assert texts("memory://bucket", tmp_path) == ["another b", "one", "two", "b"]
    assert texts("memory://bucket/**/*.txt", tmp_path) == ["another b", "b"]
    assert texts("memory://bucket/b.txt", tmp_path) == ["b"]
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "000001-rows.jsonl" in names
    assert not any(path.name.endswith(".partial") for path in tmp_path.rglob("*"))


def test_a_second_run_needs_no_network(bucket, tmp_path, monkeypatch):
    first = texts("memory://bucket", tmp_path)
    monkeypatch.setattr(fsspec, "url_to_fs", None)
    assert texts("memory://bucket", tmp_path) == first


def test_a_corpus_of_urls_and_files(bucket, tmp_path):
    (tmp_path / "local.txt").write_text("".join(f"line {n}\n" for n in range(500)))
    config = DataConfig(
        source=f"memory://bucket/a,{tmp_path}/local.txt",
        tokenizer="bytes",
        cache=str(tmp_path / "cache"),
    )
    corpus = prepare(config, 257)
    assert corpus.train.num_documents + corpus.val.num_documents > 10
    assert prepare(config, 257).folders == corpus.folders


def test_a_copy_that_is_damaged_is_named(bucket, tmp_path):
    (file,) = download("memory://bucket/b.txt", tmp_path).values()
    file.write_text("longer")
    with pytest.raises(DataError, match=r"000000-b\.txt: 6 bytes, but 1 were downloaded; delete "):
        download("memory://bucket/b.txt", tmp_path)
    (file.parent / "files.json").write_text("[]")
    with pytest.raises(DataError, match=r"files\.json: damaged; delete "):
        download("memory://bucket/b.txt", tmp_path)


def test_a_file_that_is_not_as_long_as_announced_is_an_error(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(bucket),
        "info",
        lambda self, path, **named: {"name": path, "size": 99, "type": "file"},
    )
    with pytest.raises(DataError, match=r"b\.txt: 1 bytes came, but 99 were announced"):
        download("memory://bucket/b.txt", tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_remote_names_cannot_point_outside_the_cache(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(bucket),
        "glob",
        lambda self, path, **named: {"/bucket/../../b.txt": {}, "/bucket/a/..": {}},
    )
    monkeypatch.setattr(type(bucket), "info", lambda self, path, **named: {})
    monkeypatch.setattr(
        type(bucket), "open", lambda self, path, mode: (tmp_path / "remote.txt").open(mode)
    )
    (tmp_path / "remote.txt").write_text("x")
    files = download("memory://bucket/*", tmp_path / "cache").values()
    assert files
    assert all(file.resolve().is_relative_to(tmp_path / "cache") for file in files)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "s3://bucket/a.txt",
            "data.source='s3://bucket/a.txt': s3:// needs another package: pip install s3fs",
        ),
        ("gs://bucket/a.txt", "pip install gcsfs"),
        ("nonsense://a", "Protocol not known: nonsense"),
    ],
)
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, source, expected):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError) as caught:
        download(source, tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_url_without_files_is_an_error(bucket, tmp_path):
    for source in ("memory://elsewhere/x.txt", "memory://bucket/*.zip"):
        with pytest.raises(DataError, match="no such file, folder or glob"):
            download(source, tmp_path)


def test_a_server_that_fails_is_one_line_without_secrets(bucket, tmp_path, monkeypatch):
    def fail(self, path, **named):
        raise RuntimeError("GET https://user:hunter2@host/a.txt?signature=hunter2&x=1\nfailed")

    monkeypatch.setattr(type(bucket), "find", fail)
    with pytest.raises(StorageError) as caught:
        download("memory://bucket", tmp_path)
    assert (
        str(caught.value)
        == "data.source='memory://bucket': RuntimeError: GET https://host/a.txt failed"
    )


@pytest.mark.parametrize(
    "source",
    ["s3://key:hunter2@bucket/a", "a.txt,https://host/a?token=hunter2", "https://hunter2@host/a"],
)
def test_a_secret_in_a_source_is_refused_and_not_repeated(source):
    with pytest.raises(MoebiusError) as caught:
        DataConfig(source=source)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.fixture
def server(tmp_path):
    """A web server that serves a folder, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}", folder
        web.shutdown()


@pytest.mark.parametrize("name", ["a.jsonl.gz", "array.json.zst", "comma.csv", "a.parquet.xz"])
def test_files_of_a_web_server_are_what_their_names_and_bytes_say(server, tmp_path, name):
    address, folder = server
    plain, suffix = (name, "") if name in CONTENTS else name.rsplit(".", 1)
    compress = COMPRESSIONS[f".{suffix}" if suffix else ""]
    (folder / name).write_bytes(compress(CONTENTS[plain]))
    assert texts(f"{address}/{name}", tmp_path / "cache") == TEXTS
    tally = Tally()
    list(documents(DataConfig(source=f"{address}/{name}", cache=str(tmp_path / "cache")), tally))
    assert tally.num_files == 1


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
    for source in (f"http://{host}/a.txt", "https://nowhere.invalid/a.txt"):
        with pytest.raises(DataError, match="could not be reached") as caught:
            download(source, tmp_path)
        assert caught.value.exit_code == 3
        assert source.split("/")[2] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_the_server_does_not_have_is_one_line(server, tmp_path):
    with pytest.raises(DataError, match=r"no such file, folder or glob \(.*404"):
        download(f"{server[0]}/gone.txt", tmp_path)


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError("x"), TimeoutError("x"), socket.gaierror(-2, "x")],
)
def test_any_protocol_that_cannot_reach_its_server_is_bad_data_not_bad_storage(
    bucket, tmp_path, monkeypatch, error
):
    def fail(self, path, **named):
        raise RuntimeError("wrapped") from error

    monkeypatch.setattr(type(bucket), "find", fail)
    with pytest.raises(DataError, match="'memory://bucket': bucket could not be reached"):
        download("memory://bucket", tmp_path)


def test_copies_that_an_earlier_version_downloaded_are_still_read(bucket, tmp_path):
    first = texts("memory://bucket", tmp_path)
    (listed,) = tmp_path.rglob("files.json")
    copies = json.loads(listed.read_text())
    sizes = {name: copy["size"] for name, copy in copies.items() if "reason" not in copy}
    listed.write_text(json.dumps(sizes))
    assert texts("memory://bucket", tmp_path) == first


def test_a_folder_of_a_web_server_is_refused_and_its_list_is_not_trained_on(server, tmp_path):
    address, folder = server
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("text")
    for source in (address, f"{address}/", f"{address}/sub/", f"{address}/sub"):
        with pytest.raises(DataError, match="must be the URL of one file") as caught:
            texts(source, tmp_path / "cache")
        assert source in str(caught.value)
    assert texts(f"{address}/sub/a.txt", tmp_path / "cache") == ["text"]


def test_a_page_is_read_only_if_the_url_asks_for_one(server, tmp_path, monkeypatch):
    address, folder = server
    page = "<html><body>Please log in.</body></html>"
    for name in ("data.csv", "README.md", "page.html"):
        (folder / name).write_text(page)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "guess_type", lambda *_: "text/html; charset=x")
    for name in ("data.csv", "README.md"):
        with pytest.raises(DataError, match="the server sends a page of HTML for it"):
            texts(f"{address}/{name}", tmp_path / "cache")
    assert texts(f"{address}/page.html", tmp_path / "cache") == [page]


def test_hidden_files_and_folders_that_a_glob_matches_are_counted(bucket, tmp_path):
    bucket.pipe_file("/bucket/.hidden.txt", b"hidden")
    tally = Tally()
    list(documents(DataConfig(source="memory://bucket", cache=str(tmp_path)), tally))
    assert tally.passed_over[HIDDEN] == PassedOver(2, "/bucket/.git")
    assert texts("memory://bucket/.h*", tmp_path) == ["hidden"]
    for _ in ("downloaded", "from the copy"):
        tally = Tally()
        config = DataConfig(source="memory://bucket/*", cache=str(tmp_path))
        assert [document.text for document in documents(config, tally)] == ["b"]
        assert tally.passed_over[NOT_ENTERED] == PassedOver(1, "/bucket/a")


def reported(source: str, cache: Path) -> list[str]:
    lines: list[str] = []
    prepare(DataConfig(source=source, tokenizer="bytes", cache=str(cache)), 257, lines.append)
    return [line for line in lines if source in line and not line.startswith("preparing")]


def test_a_web_file_that_has_changed_since_it_was_downloaded_is_noticed(server, tmp_path):
    address, folder = server
    url, file, cache = f"{address}/a.jsonl", folder / "a.jsonl", tmp_path / "cache"
    rows = "".join(f'{{"text": "row {number}"}}\n' for number in range(10, 60))
    file.write_text(rows)
    assert reported(url, cache) == reported(url, cache) == []
    for changed in (rows.replace("row", "col"), rows + rows.replace("row", "new")):
        file.write_text(changed)
        stamp = file.stat().st_mtime + 5
        os.utime(file, (stamp, stamp))
        (line,) = reported(url, cache)
        assert line.startswith(f"WARNING: {url} has changed since, but is read from the copy that")
        shutil.rmtree(line.partition("; delete ")[2].removesuffix(" to download it again"))
        assert reported(url, cache) == []
    file.unlink()
    (line,) = reported(url, cache)
    assert "whether it has changed is not known: no such file, folder or glob (" in line


def test_a_bucket_that_has_changed_is_noticed(bucket, tmp_path):
    texts("memory://bucket", tmp_path)
    assert not outdated("memory://bucket", tmp_path)
    bucket.pipe_file("/bucket/b.txt", b"c")  # of the same size
    assert "memory://bucket has changed since" in outdated("memory://bucket", tmp_path)
    texts("memory://bucket/a", tmp_path)
    bucket.pipe_file("/bucket/a/new.txt", b"new")
    assert "memory://bucket/a has changed since" in outdated("memory://bucket/a", tmp_path)
    texts("memory://bucket/*", tmp_path)
    bucket.rm_file("/bucket/b.txt")
    assert "memory://bucket/* has changed since" in outdated("memory://bucket/*", tmp_path)


def test_without_a_network_the_copy_is_read_and_that_is_said(bucket, tmp_path, monkeypatch):
    def fail(self, path, **named):
        raise ConnectionRefusedError("x")

    texts("memory://bucket", tmp_path)
    monkeypatch.setattr(type(bucket), "find", fail)
    line = outdated("memory://bucket", tmp_path)
    assert line.startswith("memory://bucket: read from the copy that was downloaded on 20")
    assert "not known: bucket could not be reached (ConnectionRefusedError: x)" in line
    assert outdated("memory://bucket/b.txt", tmp_path) == outdated(str(tmp_path), tmp_path) == ""


def test_of_a_copy_that_an_earlier_version_downloaded_nothing_is_claimed(bucket, tmp_path):
    texts("memory://bucket", tmp_path)
    (listed,) = tmp_path.rglob("files.json")
    copies = json.loads(listed.read_text())
    for entry in (lambda copy: copy | {"version": ""}, lambda copy: copy["size"]):
        listed.write_text(json.dumps({name: entry(copy) for name, copy in copies.items()}))
        assert not outdated("memory://bucket", tmp_path)


def test_a_file_system_that_connects_at_once_and_cannot_is_one_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DataError, match=f"{host} could not be reached") as caught:
        download(f"ftp://{host}/a.txt", tmp_path)
    assert "cache" not in str(caught.value)


def test_a_comma_in_a_url_is_explained(server, tmp_path):
    address, folder = server
    (folder / "a,b.txt").write_text("text, and more of it\n" * 20 + "the end\n" * 20)
    config = DataConfig(source=f"{address}/a,b.txt", tokenizer="bytes", cache=str(tmp_path / "c"))
    with pytest.raises(DataError, match=f"write %2C for a comma: {address}/a%2Cb.txt"):
        prepare(config, 257)
    prepare(replace(config, source=f"{address}/a%2Cb.txt"), 257)
    check_commas([address, "hf:a/b", "python-stdlib", "no/such/*.txt", f"{address}/x"])
    check_commas([address, str(folder)])


def test_compressed_files_are_read_whatever_the_server_announces(server, tmp_path, monkeypatch):
    def end_headers(handler: SimpleHTTPRequestHandler) -> None:
        if handler.path.endswith(".gz"):  # as many servers announce such files
            handler.send_header("Content-Encoding", "gzip")
        end_as_before(handler)

    end_as_before = SimpleHTTPRequestHandler.end_headers
    monkeypatch.setattr(SimpleHTTPRequestHandler, "end_headers", end_headers)
    address, folder = server
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert texts(f"{address}/a.jsonl.gz", tmp_path) == ["one", "two"]


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_server_that_refuses_a_file_is_not_said_to_lack_it(
    server, tmp_path, monkeypatch, status
):
    monkeypatch.setattr(
        SimpleHTTPRequestHandler, "send_head", lambda self: self.send_error(status)
    )
    with pytest.raises(DataError, match=f"the server does not send it .*{status}"):
        download(f"{server[0]}/a.txt", tmp_path)
