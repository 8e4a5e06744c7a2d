"""The private Ray: nobody else's, and gone afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

# In a process of its own: Ray decides once, when it is first imported, whether it wants a token.
PROGRAM = """
import json, os, subprocess
from pathlib import Path
from cluster.ray_cluster import connect

os.environ["RAY_AUTH_TOKEN"] = "before"
os.environ.pop("RAY_ADDRESS", None)
os.umask(0o022)
mode = lambda path: path.stat().st_mode & 0o777
with connect(cpus=1, gpus=0):
    import ray

    directory = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    facts = {
        "directory": str(directory),
        "modes": [mode(directory), mode(directory / "token")],
        "ray is inside": (directory / "ray").is_dir(),
        "elsewhere": ray.get(ray.remote(lambda: os.getpid()).remote()) != os.getpid(),
        "umask inside": os.umask(0o022),
    }
    stray = subprocess.Popen(["sleep", "600"], start_new_session=True)  # as a process of Ray's that does not end
facts["stray ended by"] = -stray.wait(timeout=60)
facts["ours"] = {key: value for key, value in os.environ.items() if key.startswith(("RAY_AUTH", "MALLOC_"))}
print(json.dumps(facts))
"""


def test_a_private_ray_is_private_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    directory = Path(facts.pop("directory"))
    assert facts == {
        "modes": [0o700, 0o600],
        "ray is inside": True,
        "elsewhere": True,
        "umask inside": 0o022,
        "stray ended by": signal.SIGKILL,
        "ours": {"RAY_AUTH_TOKEN": "before"},
    }
    assert not directory.exists()
