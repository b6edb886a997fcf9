"""The commands that we start."""

import json
import os
import platform
import sys

import pytest

from nnunet_semicon import commands

PRINT = "import json, os; print(json.dumps(dict(os.environ)))"


def environment_of_a_command(tmp_path, variables: dict[str, str]) -> dict[str, str]:
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = commands.start([sys.executable, "-c", PRINT], variables, output)
    assert process.wait() == 0
    return json.loads(log.read_text())


def test_freed_memory_stays_with_a_command_where_the_library_is_glibc(tmp_path):
    found = environment_of_a_command(tmp_path, {})
    if platform.libc_ver()[0] == "glibc":
        assert found["MALLOC_MMAP_MAX_"] == "0"
        assert int(found["MALLOC_TRIM_THRESHOLD_"]) >= 2**29
    else:
        assert not any(name.startswith("MALLOC_") for name in found)
    assert not any(name.startswith("MALLOC_") for name in os.environ)


@pytest.mark.parametrize("name", commands.KEEP_FREED_MEMORY)
def test_the_allocation_that_a_user_chose_stays(tmp_path, name):
    assert environment_of_a_command(tmp_path, {name: "65536"})[name] == "65536"


def test_another_library_gets_no_variable(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert commands.allocator() == {}
