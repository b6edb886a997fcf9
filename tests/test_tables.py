"""Tables for terminal, pipe, log and Markdown."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from nnunet_semicon.tables import markdown, render

REASON = " ".join(["reason"] * 40)


def in_a_terminal(expression: str, width: int) -> list[str]:
    """Return the lines that ``print(expression)`` writes to a terminal of a width, in a process of its own."""
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    code = f"from nnunet_semicon.tables import render; from tests.test_tables import REASON; print({expression})"
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, env={**environment, "TERM": "xterm"})
    os.close(terminal)
    written = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)
    assert process.wait() == 0, written
    return written.decode().splitlines()


def test_words_to_the_left_and_numbers_to_the_right():
    rows = [
        ["class", "cases", "DSC", "mean", "kind"],
        ["LV", "8", "0.900", "12.345 ± 1.000", "a"],
        ["myocardium", "10", "-", "1.234 ± -", "8 (4)"],
    ]
    assert render(rows).split("\n") == [
        "class       cases    DSC            mean  kind",
        "LV              8  0.900  12.345 ± 1.000  a",
        "myocardium     10      -       1.234 ± -  8 (4)",
    ]


def test_without_titles_the_first_row_counts_too():
    assert render([["a", "7"], ["bc", "x"]], header=False, indent="  ") == "  a   7\n  bc  x"
    assert render([["a", "7"], ["bc", "10"]], header=False) == "a    7\nbc  10"


def test_no_rows_no_text():
    assert render([]) == ""
    assert render([["only", "titles"]]) == "only  titles"


def test_brackets_are_no_markup():
    cells = ["[bold]x[/bold]", "[0, 1]", ":smile:", "[/]"]
    assert render([cells], header=False) == "  ".join(cells)
    assert render([cells]) == "  ".join(cells)


def test_wide_characters_are_aligned_by_the_columns_that_they_take():
    assert render([["左心室", "a"], ["LV", "b"]], header=False) == "左心室  a\nLV      b"


def test_a_pipe_gets_whole_lines_without_escape_codes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = render([["key", "reason"], ["temperature", REASON]])
    assert text.split("\n") == ["key          reason", f"temperature  {REASON}"]


def test_a_terminal_wraps_long_cells_and_nothing_else():
    lines = in_a_terminal("render([['temperature', '0.5', REASON], ['x', '10', 'short']], False, '  ')", 60)
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("  temperature  0.5  reason reason")
    assert lines[1].startswith(" " * 20 + "reason")
    assert lines[-1] == "  x             10  short"
    assert " ".join(line[20:] for line in lines[:-1]) == REASON
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    "expression", ["render([['temperature', REASON]], wrap=False)", "render([['9' * 80, '1']] * 2)"]
)
def test_a_terminal_gets_whole_lines_of_a_log_and_of_numbers(expression):
    (line, *rest) = in_a_terminal(expression, 60)
    assert len(line) > 60
    assert rest in ([], [line])


def test_markdown():
    assert markdown([["a", "b"], ["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
