"""Ways in which files get damaged, without a trace in their times and sizes, and the commands that remedies name."""

import os
import subprocess
from pathlib import Path

from projects import Project


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file; DVC, which looks at size, time and inode, sees nothing."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def mend(project: Project, remedy: str) -> None:
    """Do what a remedy says: a command, or several."""
    for command in remedy.split(", then "):
        subprocess.run(command, shell=True, check=True, cwd=project.folder, env=project.environment())
