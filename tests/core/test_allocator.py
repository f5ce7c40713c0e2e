"""What ksm's own processes ask of the allocator, and that it is granted."""

import platform
import subprocess
import sys

import pytest

from ksm.core import allocator as _malloc

SCRIPT = """
import sys, torch
from pathlib import Path
from ksm.core.allocator import give_back_freed_blocks, keep_freed_blocks
def resident():
    return int(Path('/proc/self/status').read_text().split('VmRSS:')[1].split()[0]) // 1024
asked = {'keep': [keep_freed_blocks], 'give back': [keep_freed_blocks, give_back_freed_blocks]}
assert all(each() for each in asked.get(sys.argv[1], []))
before = resident()
block = torch.ones(64 * 2**20 // 4)
del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize("way, kept", [("keep", True), ("leave", False), ("give back", False)])
def test_freed_memory_is_kept(way, kept):
    command = [sys.executable, "-c", SCRIPT, way]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (int(found) > 48) == kept


def test_elsewhere_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(_malloc.sys, "platform", "darwin")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")  # so that it is as before afterwards
    assert not _malloc.keep_freed_blocks()
    assert not _malloc.give_back_freed_blocks()
