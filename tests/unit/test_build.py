"""Building the injection library: with which compiler, against which CUPTI, into which cache, and what is said where
one of them is not to be had."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cctrain import emulation
from cctrain.__main__ import main
from cctrain.emulation.build import Cupti, build, find_cupti, injection_library
from cctrain.emulation.injector import CROSSINGS, INJECTION, TOLLS, process_environment, tolls_text
from cctrain.emulation.profile import load_profile
from cctrain.errors import PlatformError

_COUNTING = """#!/bin/sh
echo x >> {log}
exec gcc "$@"
"""


@pytest.fixture(scope="module")
def cupti():
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    return find_cupti()


def compiler(folder, text):
    path = folder / "compiler"
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """A compiler that keeps a log of its runs."""
    log = tmp_path / "log"
    monkeypatch.setenv("CC", str(compiler(tmp_path, _COUNTING.format(log=log))))
    return lambda: len(log.read_text().split()) if log.exists() else 0


def test_the_library_is_built_once_and_then_found(cupti, tmp_path, counting):
    first = build(cupti, tmp_path / "cache")
    assert first.is_file()
    assert counting() == 1
    assert build(cupti, tmp_path / "cache") == first
    assert counting() == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_what_is_in_the_cache_needs_no_compiler(cupti, tmp_path, monkeypatch):
    built = build(cupti, tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build(cupti, tmp_path) == built


def test_another_cupti_makes_another_library(cupti, tmp_path):
    other = tmp_path / cupti.library.name
    shutil.copy(cupti.library, other)
    assert build(cupti, tmp_path / "cache") != build(Cupti(cupti.headers, other), tmp_path / "cache")


def test_calls_that_cupti_numbers_anew_make_another_library(cupti, tmp_path):
    folders = []
    for index, folder in enumerate(cupti.headers):
        shutil.copytree(folder, tmp_path / str(index))
        folders.append(tmp_path / str(index))
    copied = Cupti(tuple(folders), cupti.library)
    before = build(copied, tmp_path / "cache")
    (header,) = (path for folder in folders for path in folder.glob("cupti_driver_cbid.h"))
    header.write_text(header.read_text() + "/* upgraded in place */")
    assert build(copied, tmp_path / "cache") != before


def test_a_change_in_any_of_its_files_makes_another_library(cupti, tmp_path):
    shutil.copytree(Path(emulation.__file__).parent / "injection", tmp_path / "injection")
    source, header = (tmp_path / "injection" / name for name in ("inject.c", "copies.h"))
    before = build(cupti, tmp_path / "cache", source)
    header.write_text(header.read_text() + "// changed\n")
    assert build(cupti, tmp_path / "cache", source) != before


def test_no_compiler_is_said_with_what_to_install(cupti, tmp_path, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="finds no compiler: install gcc, or set CC"):
        build(cupti, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_fails_is_named_with_its_first_error_and_leaves_nothing(cupti, tmp_path, monkeypatch):
    failing = compiler(
        tmp_path, "#!/bin/sh\necho 'a warning' >&2\necho 'inject.c:1: error: no such thing' >&2\nexit 1\n"
    )
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(PlatformError, match=rf"does not compile with {failing}: inject.c:1: error: no such thing"):
        build(cupti, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_is_none_is_named_and_not_the_cache_blamed(cupti, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(PlatformError, match=r"compiler /nowhere/cc cannot be run .*: install gcc, or set CC"):
        build(cupti, tmp_path)


def test_a_compiler_is_given_with_its_options(cupti, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "gcc -DSOMETHING='a b'")
    assert build(cupti, tmp_path).is_file()


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(cupti, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match=rf"cannot be built in {tmp_path}/file/cache .*: set XDG_CACHE_HOME"):
        build(cupti, tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_of_another_user_is_named(cupti, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PlatformError, match="set XDG_CACHE_HOME"):
        build(cupti, tmp_path)


def test_two_builds_at_once_both_end_with_a_whole_library(cupti, tmp_path):
    found, at_once = [], threading.Barrier(2)

    def one():
        at_once.wait()
        found.append(build(cupti, tmp_path))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]
    code = f"import ctypes; ctypes.CDLL('{found[0]}').InitializeInjection"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def without_packages(monkeypatch, home):
    """No package of NVIDIA's in the environment, and CUDA at `home`."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not list(Path(path or ".").glob("nvidia_cuda_*"))])
    monkeypatch.setenv("CUDA_HOME", str(home))


def test_without_cupti_it_is_said_what_lacks_and_what_to_install(tmp_path, monkeypatch):
    without_packages(monkeypatch, tmp_path)
    with pytest.raises(
        PlatformError, match=r"cuda.h, cupti_callbacks.h, libcupti is not found: pip install nvidia-cuda"
    ):
        find_cupti()


def test_a_toolkits_cupti_is_found_in_its_own_place(tmp_path, monkeypatch):
    without_packages(monkeypatch, tmp_path)
    places = ("include/cuda.h", "extras/CUPTI/include/cupti_callbacks.h", "extras/CUPTI/lib64/libcupti.so.12")
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("")
    found = find_cupti()
    assert set(found.headers) == {tmp_path / "include", tmp_path / "extras/CUPTI/include"}
    assert found.library == tmp_path / "extras/CUPTI/lib64/libcupti.so.12"


def test_half_a_toolkit_is_not_enough(tmp_path, monkeypatch):
    without_packages(monkeypatch, tmp_path)
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda.h").write_text("")
    with pytest.raises(PlatformError, match=r"needs CUPTI, and cupti_callbacks.h, libcupti is not found"):
        find_cupti()


# The environment of a process that is injected into


@pytest.fixture
def own_cache(tmp_path, monkeypatch, cupti):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(INJECTION, raising=False)
    return tmp_path


def test_the_environment_names_the_library_the_tolls_and_where_the_counters_go(own_cache):
    profile = load_profile("b300")
    environment = process_environment(profile, own_cache / "crossings")
    assert environment == {
        INJECTION: str(injection_library()),
        TOLLS: tolls_text(profile),
        CROSSINGS: str(own_cache / "crossings"),
    }
    assert Path(environment[INJECTION]).parent == own_cache / "cctrain"
    assert process_environment(None)[TOLLS] == tolls_text(None)


def test_a_library_of_somebody_else_in_our_place_is_refused_by_name(own_cache, monkeypatch):
    monkeypatch.setenv(INJECTION, "/opt/nsight/libTools.so")
    with pytest.raises(PlatformError, match=rf"{INJECTION} is set to /opt/nsight/libTools.so: a profiler") as seen:
        process_environment(None)
    assert seen.value.exit_code == 3


def test_our_own_library_in_its_place_is_no_reason_to_refuse(own_cache, monkeypatch):
    monkeypatch.setenv(INJECTION, str(injection_library()))
    assert process_environment(None)[INJECTION] == str(injection_library())


def test_the_librarys_path_holds_wherever_the_program_goes(own_cache, monkeypatch):
    monkeypatch.chdir(own_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert injection_library() == own_cache / "relative" / "cctrain" / injection_library().name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_is_told_what_to_set():
    """As in a container that runs under a number nobody has."""
    code = "import os; from cctrain.emulation import build; os.setuid(54321); build._cache()"
    kept = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    here = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False, cwd=here)
    assert "PlatformError: the injection library has no place to lie" in done.stderr


@pytest.mark.parametrize("arguments", [["recipe=tiny_llama_peft", "track=none"], ["tolls", "--only", "host"]])
def test_what_runs_under_emulate_is_not_recorded_as_a_machine_without_tolls(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CCTRAIN_TOLLS", tolls_text(None))
    assert main(arguments) == 3
    assert "run it by itself" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
