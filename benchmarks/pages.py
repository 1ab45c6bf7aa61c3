"""Time how fast a page of a large study opens in Chromium, beside an empty page, and how large it is.

usage: python benchmarks/pages.py [--quick]

The page holds curves of 8 models x 13 instructions x 30 layers in 60 regions, 128 maps of fsaverage5 to turn, a table
of 480 rows, and as many bytes of pictures as a page may have. Both pages are opened in turn, each in a new profile. The
last line is one JSON object: megabytes, and the median seconds to the load event of each. With --quick each is opened
twice.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))

from bids_mllm.io.meshes import find_meshes  # noqa: E402
from bids_mllm.report.content import Picture, Table  # noqa: E402
from bids_mllm.report.explorer import LayerScores, explorer_block  # noqa: E402
from bids_mllm.report.pages import GroupPage, render_group  # noqa: E402
from bids_mllm.report.viewer import ViewerMap, score_codes, score_scale, viewer_block  # noqa: E402
from bids_mllm.workflows.page_figures import PAGE_BYTES  # noqa: E402
from tests.report.browser import PROGRAM, browser  # noqa: E402

N_MODELS, N_INSTRUCTIONS, N_LAYERS, N_ROIS, N_VERTICES = 8, 13, 30, 60, 20484


def large_page() -> str:
    """Return the page of a large study, with numbers at random."""
    rng = np.random.default_rng(0)
    models = [f"model{number}" for number in range(N_MODELS)]
    conditions = tuple(f"generated{number}" for number in range(N_INSTRUCTIONS))
    scale = score_scale("held-out r", 0.3)
    maps = [
        ViewerMap(model, f"r of {name}", "one condition", 0, score_codes(rng.normal(0.05, 0.1, N_VERTICES), scale))
        for model in models
        for name in ("best", "ceiling", "significant", *conditions)
    ]
    values = {name: rng.normal(0.1, 0.05, (N_ROIS, N_INSTRUCTIONS, N_LAYERS)) for name in ("r", "r / noise ceiling")}
    scores = [LayerScores(model, tuple(range(N_LAYERS)), conditions, values) for model in models]
    rois = [f"area{number}" for number in range(N_ROIS)]
    pictures = _pictures(rng)
    curves = explorer_block({"area": rois}, scores, caption="Regions.")
    meshes = find_meshes("fsaverage5", N_VERTICES // 2, N_VERTICES // 2)
    rows = tuple((roi, model, float(rng.normal())) for roi in rois for model in models)
    page = GroupPage(
        ("01", "02"),
        "0.1.0",
        "2026-01-02",
        figures={"maps": pictures},
        roi_tables=(Table("Regions", ("ROI", "Model", "r"), rows),),
        explorer=(curves,),
        viewer=(viewer_block(meshes, (scale,), maps, picture=pictures[0], caption="Maps."),),
    )
    return render_group(page)


def _pictures(rng: np.random.Generator) -> tuple[Picture, ...]:
    """Return pictures that are hard to compress, up to the bytes that a page has room for."""
    pictures: list[Picture] = []
    left = PAGE_BYTES
    while left > 0:
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (110, 110, 3), dtype=np.uint8))
        coarse.resize((1100, 1100)).save(buffer, "WEBP", quality=75)
        pictures.append(Picture(buffer.getvalue(), "Colours at random."))
        left -= len(buffer.getvalue())
    return tuple(pictures[:-1])


def main() -> None:
    """Open both pages in turn and tell how long each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="open each page twice instead of seven times")
    options = parser.parse_args()
    if PROGRAM is None:
        sys.exit("No Chromium was found; install it to time pages.")
    seconds: dict[str, list[float]] = {"large": [], "empty": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = {"large": large_page(), "empty": render_group(GroupPage((), "0.1.0", "2026-01-02"))}
        for which, page in pages.items():
            (folder / f"{which}.html").write_text(page, encoding="utf-8")
        for turn in range(2 if options.quick else 7):
            for which in pages:
                with browser(folder / f"profile-{which}-{turn}") as one:
                    seconds[which].append(one.open(folder / f"{which}.html"))
                    faults = one.faults()
                    if faults:
                        sys.exit(f"The {which} page has faults: {faults}")
    found = {f"{which}_seconds": round(float(np.median(times)), 3) for which, times in seconds.items()}
    print(json.dumps({"megabytes": round(len(pages["large"].encode()) / 1e6, 2), **found}))


if __name__ == "__main__":
    main()
