"""What the machine says of itself in files, commands and variables: faked trees, planted secrets, real repositories."""

import json
import subprocess

import pytest

from cctrain.platform import container, guest, host, repository, swiotlb, tdisp, versions

TDX_CPU = "processor : 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8570\nflags\t\t: fpu vme hypervisor tdx_guest\n"
SNP_CPU = "model name : AMD EPYC 9575F\nflags : fpu hypervisor sev sev_snp\n"
SNP_HOST_CPU = "model name : AMD EPYC 9575F\nflags : fpu sev sev_es sev_snp\n"
PLAIN_CPU = "model name : Intel(R) Xeon(R)\nflags : fpu vme hypervisor\n"


@pytest.fixture
def root(tmp_path):
    """Makes a root directory of files, given by path; a path that ends in / is a directory."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_text(text)
        return tmp_path

    return make


# Guest


@pytest.mark.parametrize(
    ("files", "kind", "seen"),
    [
        ({"proc/cpuinfo": TDX_CPU, "dev/tdx_guest": ""}, "tdx", ["/proc/cpuinfo: tdx_guest", "/dev/tdx_guest"]),
        ({"proc/cpuinfo": TDX_CPU}, "tdx", ["/proc/cpuinfo: tdx_guest"]),  # in a container, without the device
        ({"proc/cpuinfo": PLAIN_CPU, "dev/tdx_guest": ""}, "tdx", ["/dev/tdx_guest"]),
        ({"proc/cpuinfo": SNP_CPU}, "sev-snp", ["/proc/cpuinfo: sev_snp"]),
        ({"proc/cpuinfo": PLAIN_CPU, "dev/sev-guest": ""}, "sev-snp", ["/dev/sev-guest"]),
        ({"proc/cpuinfo": SNP_HOST_CPU}, "none", []),  # a host that could run such guests
        ({"proc/cpuinfo": PLAIN_CPU}, "none", []),
        ({}, None, []),
    ],
)
def test_the_kind_of_guest_is_told_by_its_cpu_and_its_devices(root, files, kind, seen):
    assert guest.observe(root(files)) == {"kind": kind, "seen": seen, "has_reports": False}


def test_a_guest_that_hands_out_reports_says_so(root):
    found = guest.observe(root({"proc/cpuinfo": TDX_CPU, "sys/kernel/config/tsm/report/": ""}))
    assert (found["kind"], found["has_reports"]) == ("tdx", True)


# SWIOTLB


def test_the_size_and_use_of_swiotlb_are_in_bytes(root):
    debug = "sys/kernel/debug/swiotlb/io_tlb_"
    files = {f"{debug}nslabs": "524288\n", f"{debug}used": "1024\n", f"{debug}used_hiwater": "4096\n"}
    assert swiotlb.observe(root(files | {"proc/cmdline": "ro swiotlb=524288,force quiet\n"})) == {
        "size_bytes": 1 << 30,
        "used_bytes": 2 << 20,
        "peak_used_bytes": 8 << 20,
        "parameter": "524288,force",
    }


def test_without_root_the_size_of_swiotlb_is_unknown_and_the_parameter_is_not(root):
    found = swiotlb.observe(root({"proc/cmdline": "swiotlb=force my.swiotlb=5"}))
    assert found == {"size_bytes": None, "used_bytes": None, "peak_used_bytes": None, "parameter": "force"}
    assert swiotlb.observe(root({"proc/cmdline": "my.swiotlb=5 quiet"}))["parameter"] is None


def test_a_counter_of_swiotlb_below_zero_is_unknown(root):
    assert swiotlb.observe(root({"sys/kernel/debug/swiotlb/io_tlb_used": f"{(1 << 64) - 1}\n"}))["used_bytes"] is None


# TDISP


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "none"),
        ({"sys/class/tsm/": ""}, "none"),
        ({"sys/class/tsm/tsm0/": ""}, "available"),
        ({"sys/class/tsm/tsm0/": "", "{gpu}/tsm/connect": "\n", "{gpu}/tsm/bound": "\n"}, "available"),
        ({"sys/class/tsm/tsm0/": "", "{gpu}/tsm/connect": "tsm0\n", "{gpu}/tsm/bound": ""}, "connected"),
        ({"sys/class/tsm/tsm0/": "", "{gpu}/tsm/connect": "tsm0\n", "{gpu}/tsm/bound": "tsm0\n"}, "bound"),
        ({"{gpu}/tsm/bound": "tsm0\n"}, "bound"),
    ],
)
def test_tdisp_is_as_far_as_its_furthest_device(root, files, state):
    made = root({name.format(gpu="sys/devices/pci0000:15/0000:18:00.0"): text for name, text in files.items()})
    links = made / "sys/bus/pci/devices"
    links.mkdir(parents=True)
    for name in ("0000:18:00.0", "0000:19:00.0"):
        target = made / "sys/devices/pci0000:15" / name
        target.mkdir(parents=True, exist_ok=True)
        (links / name).symlink_to(target)
    found = tdisp.observe(made)
    assert found["state"] == state
    assert list(found["devices"]) == (["0000:18:00.0"] if any("{gpu}" in name for name in files) else [])


# Host and container


def test_the_host_is_its_cpu_and_kernel_and_the_variables_that_change_speed(root):
    variables = {"NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "8", "HOME": "/home/me", "USER": "me"}
    found = host.observe(variables, root({"proc/cpuinfo": TDX_CPU, "proc/cmdline": "root=/dev/vda1 ro\n"}))
    assert found["cpu"] == "Intel(R) Xeon(R) Platinum 8570"
    assert found["kernel_command_line"] == "root=/dev/vda1 ro"
    assert found["environment"] == {"NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "8"}
    assert host.observe({}, root({}) / "empty")["kernel_command_line"] is None


def test_a_boot_is_told_from_another_without_its_id(root):
    boot_id = "4a1c3f0e-8f57-4b53-9d43-0f2f2a6b7c11"
    path = "proc/sys/kernel/random/boot_id"
    first, again, other = (
        host.observe({}, root({path: text}))["boot"] for text in (boot_id, f"{boot_id}\n", "another")
    )
    assert first == again != other
    assert len(first) == 12
    assert first not in boot_id.replace("-", "")
    assert host.observe({}, root({}) / "empty")["boot"] is None


@pytest.mark.parametrize(
    ("files", "variables", "found"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
        ({"proc/self/cgroup": "0::/system.slice/docker-9f.scope\n"}, {}, "docker"),
        ({"proc/self/cgroup": "0::/\n"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/kubepods.slice/cri-containerd-3.scope\n"}, {}, "kubernetes"),
        ({".dockerenv": "", "proc/self/cgroup": "0::/kubepods/x\n"}, {}, "docker"),
        ({"proc/self/cgroup": "0::/user.slice/session-1.scope\n"}, {}, None),
    ],
)
def test_a_container_is_told_by_its_marks(root, files, variables, found):
    assert container.observe(variables, root(files)) == found


def test_versions_are_those_of_the_installed_packages():
    found = versions.package_versions()
    assert found["torch"]
    assert found["nemo-automodel"]
    assert set(versions.cuda_versions()) == {"cuda_runtime", "nccl", "cudnn"}


# Repository


def git(folder, *arguments):
    who = ["-c", "user.name=me", "-c", "user.email=me@example.com"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit, and what its head is."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "recipe.yaml").write_text("a: 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder, git(folder, "rev-parse", "HEAD").strip()


def test_a_clean_checkout_is_its_commit(checkout):
    folder, head = checkout
    clean = {"commit": head, "is_dirty": False, "num_untracked": 0}
    assert repository.observe(folder, package=folder) == {"cctrain": clean, "working_directory": clean}


def test_a_changed_file_makes_a_checkout_dirty_and_a_new_one_is_counted(checkout):
    folder, _ = checkout
    (folder / "new.yaml").write_text("")
    found = repository.observe(folder)["working_directory"]
    assert (found["is_dirty"], found["num_untracked"]) == (False, 1)
    (folder / "recipe.yaml").write_text("a: 2\n")
    assert repository.observe(folder)["working_directory"]["is_dirty"]


def test_where_there_is_no_repository_or_no_commit_there_is_null(tmp_path, checkout):
    folder, _ = checkout
    assert repository.observe(tmp_path, package=tmp_path) == {"cctrain": None, "working_directory": None}
    installed = folder / ".venv/lib/site-packages"  # inside somebody's checkout, not cctrain's
    installed.mkdir(parents=True)
    assert repository.observe(installed, package=installed)["cctrain"] is None
    git(tmp_path, "init", "-q")
    assert repository.observe(tmp_path)["working_directory"] is None


def test_a_repository_cannot_make_git_run_a_program(checkout, tmp_path):
    folder, head = checkout
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(program))
    assert repository.observe(folder)["working_directory"]["commit"] == head
    assert not (tmp_path / "ran").exists()


# Secrets


def test_no_planted_secret_comes_through(root, checkout):
    token, password, planted = "hf_" + "Ab1" * 12, "correct-horse-battery", "0123456789abcdef" * 2
    folder, _ = checkout
    git(folder, "remote", "add", "origin", f"https://me:{password}@example.com/repo.git")
    command_line = f"ro systemd.set_credential=login:{password} ds=nocloud;s=http://u:{password}@h/ key {token}"
    variables = {
        "HF_TOKEN": token,
        "WANDB_API_KEY": planted,
        "NCCL_SOCKET_IFNAME": "eth0",
        "NCCL_AUTH_TOKEN": password,
        "NVIDIA_DRIVER_URL": f"https://me:{password}@mirror/driver",
        "CUDA_CACHE_PATH": f"/cache/{planted}",
    }
    made = root({"proc/cmdline": command_line, "proc/cpuinfo": PLAIN_CPU})
    seen = [host.observe(variables, made), container.observe(variables, made), repository.observe(folder, folder)]
    text = json.dumps(seen)
    assert [secret for secret in (token, password, planted) if secret in text] == []
    assert seen[0]["environment"]["NCCL_SOCKET_IFNAME"] == "eth0"
    assert seen[0]["environment"]["CUDA_CACHE_PATH"] == "/cache/[redacted]"
    assert seen[0]["kernel_command_line"].startswith("ro systemd.set_credential=[redacted]")
