"""Files appear whole or not at all; JSON files are read with one sentence where they are not as expected."""

import hashlib
import json
import os
import stat

import pytest

from nnunet_semicon.errors import UserError
from nnunet_semicon.files import (
    explain_unwritable,
    read_object,
    read_object_or_none,
    replacing,
    sha256,
    write_json,
    write_text,
    write_texts,
)


class StoppedError(Exception):
    """What a writer may raise in the middle of a file."""


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_text_replaces_the_file_byte_for_byte(tmp_path):
    file = tmp_path / "file.txt"
    for text in ("ä\nb\r\n", "shorter"):
        write_text(file, text)
        assert file.read_bytes() == text.encode()
    assert list(tmp_path.iterdir()) == [file]


def test_json_is_as_python_writes_it(tmp_path):
    content = {"b": [1, None, "ä"], "a": 0.1}
    write_json(str(tmp_path / "file.json"), content, indent=4)
    assert (tmp_path / "file.json").read_text() == json.dumps(content, indent=4)


def test_the_permissions_of_a_replaced_file_stay(tmp_path):
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o640)
    write_text(file, "new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_writer_that_stops_leaves_the_old_file_and_no_temporary_one(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def stop():
        with replacing(file) as (temporary,):
            temporary.write_text("half")
            assert temporary.parent == file.parent  # on the same disk: replacing is then one step
            raise StoppedError

    with pytest.raises(StoppedError):
        stop()
    assert contents(tmp_path) == {"file": "old"}


def test_a_content_without_a_form_in_json_changes_nothing(tmp_path):
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert contents(tmp_path) == {"file": '{"a": 1}'}


@pytest.mark.parametrize("blocked", ["b.tmp", "b"])
def test_of_several_files_all_are_replaced_or_none(tmp_path, blocked):
    (tmp_path / "a").write_text("old")
    (tmp_path / blocked).mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        write_texts({tmp_path / name: "new" for name in "abc"})
    assert caught.value.filename == str(tmp_path / "b")
    assert (tmp_path / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a", blocked}
    (tmp_path / blocked).rmdir()
    write_texts({tmp_path / name: f"new {name}" for name in "abc"})
    assert contents(tmp_path) == {name: f"new {name}" for name in "abc"}


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path):
    with replacing(tmp_path / "file") as (temporary,):
        temporary.write_text("new")
    temporary.write_text("half")
    write_text(tmp_path / "file", "newer")
    assert contents(tmp_path) == {"file": "newer"}


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    file = tmp_path / "missing" / "file"
    with pytest.raises(UserError) as caught, explain_unwritable(tmp_path, "choose another folder"):
        write_text(file, "text")
    assert str(caught.value) == f"{file} cannot be written (No such file or directory): choose another folder"
    with pytest.raises(UserError) as caught, explain_unwritable(file, "make room"):
        raise OSError(28, os.strerror(28))  # a full disk: the error names no file
    assert str(caught.value) == f"{file} cannot be written (No space left on device): make room"


def test_an_object_is_read(tmp_path):
    (tmp_path / "file").write_text('{"a": "ä"}', encoding="utf-8")
    assert read_object(tmp_path / "file") == read_object_or_none(str(tmp_path / "file")) == {"a": "ä"}


@pytest.mark.parametrize(
    ("text", "reason", "forgiving"),
    [
        (None, "cannot be read (No such file or directory)", None),
        ("{", "is not valid JSON (", None),
        ("[1]", "holds no JSON object", {}),
    ],
)
def test_what_is_no_object_is_one_sentence_or_told_apart(tmp_path, text, reason, forgiving):
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_object(file)
    assert str(caught.value).startswith(f"{file} {reason}")
    assert str(caught.value).endswith(": repair it, or copy it again")
    assert read_object_or_none(file) == forgiving


def test_the_hash_of_a_file_longer_than_one_block(tmp_path):
    content = os.urandom(3) + bytes(5 << 19)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
