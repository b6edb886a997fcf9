"""What the processor can do, and how much of it a training may use."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# bfloat16 products: AVX-512 and AMX of x86; the bf16 extension of Arm
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def has_bfloat16(cpuinfo: Path = CPUINFO) -> bool | None:
    """Return whether the processor multiplies in bfloat16; None: not known (no Linux, or no flags in its file).

    Args:
        cpuinfo: file with the text of Linux' ``/proc/cpuinfo``.
    """
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)  # x86 and Arm
    return None if flags is None else not BFLOAT16_FLAGS.isdisjoint(flags[1].split())


def threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of threads that ``OMP_NUM_THREADS`` asks for, at least 1; None: it asks for none.

    As in OpenMP, the first number of a list counts, and a malformed value is ignored.
    """
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    is_number = first.isascii() and first.isdigit()
    return int(first) if is_number and int(first) > 0 else None
