"""The complete job scripts in a page of the documentation, and what they become to run on a test's own Slurm."""

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def job_scripts(page: str) -> list[str]:
    """Return the blocks of a page that begin with #!/bin/bash and have lines of #SBATCH."""
    blocks = [match.group(1) for match in FENCE.finditer(page)]
    return [block for block in blocks if block.startswith("#!/bin/bash\n") and "\n#SBATCH " in block]


def adapted(script: str, places: dict[str, str], participants: int) -> str:
    """Return a script with the places of a test and with what its one node can give."""
    examples = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    script = re.sub(rf"(?<![\w./-])({examples})(?![\w-])", lambda match: places[match.group(1)], script)
    script = re.sub(r"^#SBATCH --(gres|gpus|time|account|qos|dependency|constraint)\b.*\n", "", script, flags=re.M)
    script = re.sub(r"^(#SBATCH --mem)[= ]\S+", r"\1=2500M", script, flags=re.M)
    script = re.sub(r"^(#SBATCH --mem-per-cpu)[= ]\S+", r"\1=2500M", script, flags=re.M)
    script = re.sub(r"^(#SBATCH (?:--cpus-per-task|-c))[= ]\S+", r"\1=1", script, flags=re.M)
    script = re.sub(r"^(#SBATCH --partition)[= ]\S+", r"\1=cpu", script, flags=re.M)
    return re.sub(r"^(#SBATCH --array)[= ]\d+-\d+", rf"\1=1-{participants}", script, flags=re.M)


def main() -> None:
    """Write the scripts of PAGE into FOLDER; the other words are a place of the page and that of the test, in turn."""
    page, folder, *pairs = sys.argv[1:]
    places = dict(zip(pairs[::2], pairs[1::2], strict=True))
    for number, script in enumerate(job_scripts(Path(page).read_text(encoding="utf-8")), start=1):
        path = Path(folder) / f"block-{number}.sh"
        path.write_text(adapted(script, places, participants=3), encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
