"""The methods text says what was run and nothing else."""

from dataclasses import replace
from importlib.resources import files

import pytest

from bids_mllm.report.citations import (
    citation_files,
    cited_keys,
    markdown_html,
    markdown_tex,
    parse_bibliography,
    tex_escape,
)
from bids_mllm.report.methods import FAMILY_CITATIONS, ModelFacts, methods_text

from .samples import INSTRUCTIONS, MOTION_FACTS, QWEN_FACTS, make_facts

BIBLIOGRAPHY = files("bids_mllm").joinpath("data", "boilerplate.bib").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "fact",
    [
        "bids-mllm 0.1.0", "version 20.2.3", "sub-01 and sub-02", "12 functional runs", "MNI152NLin2009cAsym",
        "1.49 s", "2.98 s",
        "ended with the TR", "1, 2, 3, 4 and 5 TRs", "`motion6`", "`trans_x`", "0.0078 Hz",
        "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898", "At most 8 tokens", "16 frames", "bfloat16",
        "29 layers of 3584 features", "10 values from 0.1 to 1e+08", "logarithmic", "himalaya 0.4.11",
        "Each film was held out in turn.", "Pearson's correlation", "coefficient of determination",
        "torch 2.13.0", "z-scored within each run", "for each voxel separately, inside the training data",
        "training and in test runs alike",
        "may have been among the data", "As a low-level baseline, motionenergy",
        "[@himalaya]", "[@fmriprep]", "[@nishimoto2011; @pymoten]", "[@qwen25vl; @transformers; @pytorch]",
    ],
)  # fmt: skip
def test_each_fact_is_stated(fact: str) -> None:
    assert fact in methods_text(make_facts())


def test_every_instruction_is_quoted() -> None:
    text = methods_text(make_facts())
    for instruction in INSTRUCTIONS:
        assert f"({instruction.key}): {instruction.text}" in text


def test_a_baseline_alone_mentions_no_language_model() -> None:
    text = methods_text(make_facts(models=(MOTION_FACTS,), scores=("r",), himalaya_version=None))
    for absent in (
        "instruction was",
        "tokens",
        "trained",
        "transformers",
        "oota",
        "determination",
        "himalaya",
    ):
        assert absent not in text
    assert "the exact ridge solver of bids-mllm" in text


def test_without_baseline_the_text_says_so() -> None:
    text = methods_text(make_facts(models=(QWEN_FACTS,)))
    assert "No low-level baseline" in text
    assert "motion energy, was" not in text
    assert "pymoten" not in text


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({"denoised_in": ("xcpd",)}, "From the series of xcpd confounds had been removed", "xcpd version"),
        ({"units": ("vertices",)}, "What is said of voxels here holds for vertices", "holds for voxels"),
        ({}, "Voxelwise encoding models", "holds for"),
        ({"confound_columns": ()}, "cosine drifts below 0.0078 Hz were regressed out", "motion6"),
        ({"high_pass": None}, "`rot_z`) were regressed out", "cosine"),
        ({"high_pass": None, "confound_columns": ()}, "No confounds and no drifts", "motion6"),
        ({"fmriprep_versions": ()}, "found with PyBIDS", "fmriprep"),
        ({"fmriprep_versions": ("20.2.3", "25.2")}, "versions 20.2.3 and 25.2", "version 20"),
        ({"features_filtered": True}, "same drifts were removed from the features", "No confounds"),
        ({"window_position": "center"}, "holds frames shown after it", "no later frame"),
        ({"alphas": (1.0, 2.0, 50.0)}, "3 values from 1 to 50", "logarithmic"),
        ({"delays": (1,)}, "delayed by 1 TR (", "1 TRs"),
        ({"participants": ("07",), "n_runs": 1}, "1 functional run of 1 participant (sub-07)", "1 runs"),
        ({"group_statistics": "Maps were averaged."}, "## Group", "## Groups"),
        ({"regions": "Means over Glasser [in part]."}, r"Means over Glasser \[in part\].", " [in part"),
    ],
)  # fmt: skip
def test_the_text_follows_the_facts(changes: dict[str, object], present: str, absent: str) -> None:
    text = methods_text(make_facts(**changes))
    assert present in text
    assert absent not in text


def test_an_unknown_window_position_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'center', 'end', 'start'"):
        methods_text(make_facts(window_position="middle"))


def test_unknown_hub_models_cite_the_libraries_and_local_tables_nothing() -> None:
    hub = replace(QWEN_FACTS, family="otherfamily")
    assert "[@transformers; @pytorch]: instruction-tuned" in methods_text(make_facts(models=(hub,)))
    table = ModelFacts("words", "table", "table", "table", 1, 300)
    assert "**words**: table model" in methods_text(make_facts(models=(table,)))


def test_every_key_that_can_be_cited_has_an_entry() -> None:
    entries = parse_bibliography(BIBLIOGRAPHY)
    text = methods_text(make_facts())
    assert set(cited_keys(text)) <= set(entries)
    assert {key for keys in FAMILY_CITATIONS.values() for key in keys} <= set(entries)
    assert all({"author", "title"} <= set(entry.fields) for entry in entries.values())
    assert BIBLIOGRAPHY.count("\n@") + 1 == len(entries)


def test_references_read_as_author_and_year() -> None:
    entries = parse_bibliography(BIBLIOGRAPHY)
    assert entries["himalaya"].short == "Dupré la Tour et al., 2022"
    assert "NeuroImage 264, 119728" in entries["himalaya"].long
    assert "4(40), 1294" in entries["pybids"].long
    assert entries["pymoten"].short == "Nunez-Elizalde et al."


def test_hostile_names_stay_text() -> None:
    hostile = replace(QWEN_FACTS, key="<script>*a*_b_[@x]", source="a`b[@y]")
    text = methods_text(make_facts(models=(hostile,)))
    page = markdown_html(text, BIBLIOGRAPHY)
    assert "<script>" not in page
    assert "&lt;script&gt;*a*_b_[@x]" in page
    tex = markdown_tex(text)
    assert r"\textless{}script\textgreater{}*a*\_b\_[@x]" in tex
    assert "x" not in cited_keys(text)


def test_tex_escapes_each_special_character() -> None:
    assert tex_escape("50% & $1 #2 a_b {c} ~^\\") == (
        r"50\% \& \$1 \#2 a\_b \{c\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_tex_of_a_small_text_against_a_hand_made_case() -> None:
    tex = markdown_tex("# Title_1\n\nSome `x_1` [@a; @b] and *em*, **bold**.\n\n- one & two\n- three\n")
    assert "\\section*{Title\\_1}" in tex
    assert "Some \\texttt{x\\_1} \\cite{a,b} and \\emph{em}, \\textbf{bold}." in tex
    assert "\\begin{itemize}\n\\item one \\& two\n\\item three\n\\end{itemize}" in tex
    assert tex.count("\\begin{document}") == tex.count("\\end{document}") == 1


def test_html_has_author_year_citations_and_links_to_dois() -> None:
    page = markdown_html("## Fit\n\nRidge [@himalaya; @pybids] <b>.", BIBLIOGRAPHY, heading_shift=1)
    assert "<h3>Fit</h3>" in page
    assert "(Dupré la Tour et al., 2022; Yarkoni et al., 2019) &lt;b&gt;." in page
    assert '<a href="https://doi.org/10.1016/j.neuroimage.2022.119728">' in page
    assert "<h3>References</h3>" in page


def test_citation_files_keep_only_what_is_cited() -> None:
    made = citation_files("Ridge [@himalaya].\n", BIBLIOGRAPHY)
    assert set(made) == {"CITATION.md", "CITATION.bib", "CITATION.html", "CITATION.tex"}
    assert made["CITATION.bib"].count("@article") == 1
    assert "@article{himalaya," in made["CITATION.bib"]
    assert made["CITATION.md"] == "Ridge [@himalaya].\n"
    assert "\\cite{himalaya}" in made["CITATION.tex"]
    assert set(citation_files("Text.\n", BIBLIOGRAPHY, md_only=True)) == {"CITATION.md", "CITATION.bib"}


def test_a_citation_without_an_entry_is_named() -> None:
    with pytest.raises(ValueError, match="cites nobody2020"):
        citation_files("Text [@nobody2020].", BIBLIOGRAPHY)


def test_every_model_of_the_registry_has_a_methods_text_and_its_references() -> None:
    from bids_mllm.features.registry import load_registry

    known = set(parse_bibliography(BIBLIOGRAPHY))
    for spec in load_registry().values():
        facts = ModelFacts(spec.key, spec.family, spec.media, spec.kind, n_layers=3, width=8, source=spec.source)
        text = methods_text(make_facts(models=(facts,)))
        assert spec.family in FAMILY_CITATIONS
        assert set(FAMILY_CITATIONS[spec.family]) <= set(cited_keys(text)) <= known


def test_controls_and_demonstrations_are_stated() -> None:
    facts = replace(QWEN_FACTS, key="qwen25vl7b+random", random_weights=True, n_demonstrations=2)
    text = methods_text(make_facts(models=(facts,)))
    assert "its weights were drawn at random" in text
    assert "2 demonstrations with instruction and answer stood before each clip" in text
    plain = methods_text(make_facts(models=(QWEN_FACTS,)))
    assert "at random" not in plain
    assert "demonstration" not in plain
