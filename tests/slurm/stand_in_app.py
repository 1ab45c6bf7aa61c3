#!/usr/bin/env python3
"""apptainer or bids-mllm for the job scripts of the documentation: the app of the host, made quick.

As apptainer it takes ``run [options] IMAGE [options of bids-mllm]``: folders that would be bound are put back into the
options, and nothing of the environment is handed on but what ``--env`` or variables APPTAINERENV_* give, as
``--cleanenv`` would have it.
"""

import os
import re
import sys
from pathlib import Path

#: Variables that an image has of its own or that a process cannot do without.
KEPT = ("PATH", "REAL_APP", "QUICK", "HF_HUB_OFFLINE", "TEMPLATEFLOW_AUTOUPDATE", "NO_ET", "MPLBACKEND")
WITH_VALUE = ("-B", "--bind", "--env", "-W", "--workdir", "--pwd", "--home", "-H", "--network")


def from_apptainer(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the options of the app with paths of the host, and the environment that it is given."""
    if words.pop(0) != "run":
        sys.exit("the stand-in of apptainer knows run only")
    binds: dict[str, str] = {}
    given = {name: os.environ[name] for name in KEPT if name in os.environ}
    prefix = "APPTAINERENV_"
    given |= {name[len(prefix) :]: value for name, value in os.environ.items() if name.startswith(prefix)}
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option in WITH_VALUE:
            value = value if equals else words.pop(0)
        if option in ("-B", "--bind"):
            for bind in value.split(","):
                source, _, target = bind.partition(":")
                if not Path(source).exists():
                    sys.exit(f"apptainer would not bind {source}, which does not exist")
                binds[target.partition(":")[0] or source] = source
        elif option == "--env":
            name, _, text = value.partition("=")
            given[name] = text
    image = Path(words.pop(0))
    if not image.exists():
        sys.exit(f"apptainer would not find the image {image}")
    return [_on_host(word, binds) for word in words], given


def _on_host(word: str, binds: dict[str, str]) -> str:
    for target in sorted(binds, key=len, reverse=True):
        match = re.fullmatch(rf"(|[^/]*=){re.escape(target)}(/.*)?", word)
        if match:
            return f"{match.group(1)}{binds[target]}{match.group(2) or ''}"
    return word


def main() -> None:
    """Run the app of the host."""
    words, environment = sys.argv[1:], dict(os.environ)
    if Path(sys.argv[0]).name in ("apptainer", "singularity"):
        words, environment = from_apptainer(words)
    words = ["cpu" if word.startswith("cuda") else word for word in words]
    if "participant" in words[:3]:
        words += os.environ["QUICK"].split()
    os.execve(os.environ["REAL_APP"], [os.environ["REAL_APP"], *words], environment)


main()
