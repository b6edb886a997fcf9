"""What is read of the processor, and how many threads a training gets."""

import os

import pytest
import torch
from nnunetv2.run.run_training import run_training_entry

from nnunet_semicon.processor import has_bfloat16, threads
from nnunet_semicon.training.semi_trainer import SemiTrainer
from tests.harness import configure

# excerpts of /proc/cpuinfo: the name of the processor, what it can do
CPUINFO = {
    "EPYC 9B14 (Genoa)": ("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni", True),
    "Xeon Platinum 8481C (Sapphire Rapids)": ("flags\t\t: fpu avx512f avx512_fp16 amx_bf16 amx_tile amx_int8", True),
    "Xeon Gold 6148 (Skylake)": ("flags\t\t: fpu sse2 avx2 avx512f avx512dq avx512bw", False),
    "Core i7-7700": ("flags\t\t: fpu sse2 avx avx2 fma", False),
    "Neoverse-V1": ("Features\t: fp asimd sve i8mm bf16 dgh rng", True),
    "Cortex-A72": ("Features\t: fp asimd evtstrm crc32 cpuid", False),
    "POWER9": ("revision\t: 2.2 (pvr 004e 1202)", None),
}


@pytest.mark.parametrize("model", CPUINFO)
def test_bfloat16_is_read_from_the_flags(tmp_path, model):
    line, expected = CPUINFO[model]
    bugs = "bugs\t\t: sysret_ss_attrs bf16\n"  # another line that looks alike
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: {model}\n{line}\n{bugs}\nprocessor\t: 1\n{line}\n")
    assert has_bfloat16(file) is expected


def test_without_the_file_nothing_is_known(tmp_path):
    assert has_bfloat16(tmp_path / "none") is None


def test_this_processor_agrees_with_torch():
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # empty before torch 2.6 and on other systems
    told = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert has_bfloat16() in ((told, None) if capabilities else (True, False, None))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", 1), (" 3 ", 3), ("4,2", 4), ("0", None), ("-2", None), ("2.5", None), ("many", None), ("", None)],
)
def test_threads_are_read_as_openmp_reads_them(value, expected):
    assert threads({"OMP_NUM_THREADS": value}) == expected
    assert threads({}) is None


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("many", os.cpu_count())])
@pytest.mark.parametrize("name", ["nnUNetTrainerSupervisedControl", "nnUNetTrainerSPConPretrain"])
def test_the_training_command_obeys_the_number_of_threads(training, monkeypatch, name, value, expected):
    configure(training, "one_step", "2d_short", num_epochs=1, num_iterations_per_epoch=1)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr("sys.argv", ["nnUNetv2_train", "901", "one_step", "0", "-tr", name, "-device", "cpu"])
    monkeypatch.setattr(SemiTrainer, "perform_actual_validation", lambda *_: None)
    try:
        run_training_entry()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)
