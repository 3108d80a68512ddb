"""The systemd unit and the Debian package's description, as far as they can be judged without building."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ipvsw import __version__

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "contrib" / "ipvswd.service"
EXPOSURE = 42  # of 100, as `systemd-analyze security` counts


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_understood_and_confined(tmp_path: Path) -> None:
    unit = tmp_path / "ipvswd.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/ipvswd", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert [line for line in verified.stderr.splitlines() if unit.name in line] == []
    words = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager", unit]
    judged = subprocess.run(words, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout[-200:]


def test_the_unit_for_docker_is_understood_and_the_package_has_it(tmp_path: Path) -> None:
    text = (ROOT / "contrib/ipvsw-docker.service").read_text()
    rules = (ROOT / "contrib/debian/rules").read_text()
    assert "ExecStart=/usr/local/sbin/ipvsw-docker\n" in text and "s|/usr/local/sbin/|/usr/sbin/|" in rules
    assert "scripts/plugin docker debian/ipvsw/usr/sbin/ipvsw-docker\n" in rules
    assert "StateDirectory=ipvsw-docker\n" in text
    assert "/var/lib/ipvsw-docker\n" in (ROOT / "contrib/debian/ipvsw.postrm").read_text(), "purged with the package"
    if shutil.which("systemd-analyze") is not None:
        unit = tmp_path / "ipvsw-docker.service"
        unit.write_text(text.replace("/usr/local/sbin/ipvsw-docker", "/bin/true"))
        verified = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
        assert [line for line in verified.stderr.splitlines() if unit.name in line] == []


def test_the_package_has_the_version() -> None:
    changelog = (ROOT / "contrib/debian/changelog").read_text()
    found = re.match(r"ipvsw \((.+)-\d+\) ", changelog)
    assert found is not None and found[1] == __version__


def test_the_package_has_every_program_and_page() -> None:
    scripts = re.findall(r'^(ipvsw\S*) = "(\S+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    launchers = {path.name: path.read_text() for path in (ROOT / "contrib/debian/launchers").iterdir()}
    assert {name: module for name, module in scripts if name != "ipvsw-lab"} == {
        name: re.search(r"^from (\S+) import main", text, re.MULTILINE)[1]  # type: ignore[index]
        for name, text in launchers.items()
    }
    pages = (ROOT / "contrib/debian/ipvsw.manpages").read_text().split()
    assert sorted(pages) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "man").iterdir())


def test_what_builds_the_package_is_installed_for_it() -> None:
    control = (ROOT / "contrib/debian/control").read_text()
    wanted = re.findall(r"^ ([a-z][a-z0-9-]+)", control.split("Build-Depends:")[1].split("\n\n")[0], re.MULTILINE)
    prepare = (ROOT / "scripts/prepare").read_text().split("needed_deb()")[1].split("\nEND\n")[0]
    installed = {line.split()[1] for line in prepare.splitlines() if len(line.split()) == 2 and "<<" not in line}
    of_debhelper = {"debhelper-compat", "dh-sequence-installsysusers", "dh-sequence-python3"}
    assert set(wanted) - of_debhelper <= installed
