"""`llama-skip report`: the page's and the picture's content, read back."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from llama_skip import write_report
from llama_skip.cli import main
from llama_skip.errors import MIB
from llama_skip.eval.file import EvalRow, Evaluation, write_evaluation
from llama_skip.files.identity import Identity, TextInfo
from llama_skip.model.loaded import DeviceMemory
from llama_skip.plan.file import Plan, write_plan
from llama_skip.plan.found import Found
from llama_skip.score.file import BlockScore, Score, Step, write_score
from support.shared.halves import ATTN, FFN, score_with_halves

pytest.importorskip("matplotlib")

BLOCK = 3 * MIB  # bytes of a block's weights
MODEL = Identity("a<b>.gguf", "0" * 16, "1" * 16, "llama", 6, 64, 100, "Q4_1", 25 * MIB)
TEXT = TextInfo("file", "text & more.txt", "ab" * 32, 1024, 512, 2, 510)
BLOCKS = [
    BlockScore(
        il,
        0.1 + il / 7,
        10.5 + il,
        11.25 + il,
        20 + il * il / 3,
        0.4,
        0.123456 * (il + 1),
        0.01,
        510,
        BLOCK,
        96,
    )
    for il in range(5)
] + [BlockScore(5, weights_bytes=BLOCK, refused="block 4 <needs> it")]
ANGULAR: list[list[float | None]] = [[0.01 * (il + 1) * n for n in range(1, 7 - il)] for il in range(5)]
ANGULAR.append([None])
PATH = [
    Step(2, 21.5, 0.5, 0.37, 0.01, 0.75, 510, BLOCK),
    Step(0, 44.125, 0.9, 0.98765, 0.02, 0.5, 510, 2 * BLOCK),
]
SCORE = Score(MODEL, TEXT, {"n_ctx": 512, "text": None}, True, 15.75, 0.3, BLOCKS, ANGULAR, PATH)
PLAN = Plan(MODEL, "0-2+2", found=Found(kld=0.98765, perplexity=44.125, perplexity_full=15.75))


def row(name: str, layers: str, weights: float, kld: float, file_id: str = MODEL.file_id) -> EvalRow:
    memory = {"CPU": DeviceMemory(weights - 4, 7, 8), "RPC0": DeviceMemory(4, 7, 8)}
    return EvalRow(
        name,
        "f.gguf",
        file_id,
        "Q4_1",
        6,
        layers,
        "",
        16 + kld,
        0.3,
        kld,
        0.01,
        0.1,
        2,
        0.8,
        510,
        None,
        None,
        memory,
    )


EVALUATION = Evaluation(
    MODEL,
    TEXT,
    {},
    [row("none", "", 25, 0), row("2", "2", 22, 0.4), row("q3.gguf", "", 18.5, 0.25, "2" * 16)],
)


class Page(HTMLParser):
    """Tables by id as rows of cells, and the number of svg elements; tags that do not match are an error."""

    OPEN = ("meta", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.text: list[str] = []
        self.n_svg = 0
        self.stack: list[str] = []
        self.heads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text())
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.OPEN:
            self.stack.append(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.n_svg += tag == "svg"
        if tag == "table":
            self.rows: list[list[str]] = []
            self.tables[found["id"] or ""] = []
            self.name = found["id"] or ""
        if tag == "tr":
            self.cells: list[str] = []
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.OPEN:
            return
        assert self.stack.pop() == tag
        if tag == "thead":
            self.heads = self.cells
        if tag == "tr" and "tbody" in self.stack:
            self.tables[self.name].append(dict(zip(self.heads, self.cells, strict=True)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.stack and self.stack[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(SCORE, [PLAN, EVALUATION], path) == []
    return Page(path)


def mean_and_error(cell: str) -> list[float]:
    return [float(part.replace(",", "")) for part in cell.split("\u00b1")]


def test_the_path_table_holds_the_score_s_numbers(page: Page) -> None:
    rows = page.tables["path-table"]
    assert [row["block"] for row in rows] == ["2", "0"]
    assert [row["left out"] for row in rows] == ["2", "0,2"]
    for row, step in zip(rows, PATH, strict=True):
        assert mean_and_error(row["perplexity"]) == [step.perplexity, step.perplexity_error]
        assert mean_and_error(row["KL divergence"]) == [round(step.kld, 4), step.kld_error]
        assert float(row["\u00d7 full"]) == pytest.approx(step.perplexity / 15.75, abs=5e-4)
        assert float(row["same top token"].rstrip("%")) == 100 * step.top1
    assert [float(row["MiB left"]) for row in rows] == [22, 19]


def test_the_blocks_table_holds_every_block(page: Page) -> None:
    rows = page.tables["blocks-table"]
    assert [row["block"] for row in rows] == list("012345")
    for row, block in zip(rows[:5], BLOCKS, strict=False):
        assert mean_and_error(row["perplexity without"]) == pytest.approx([block.perplexity, 0.4], abs=5e-4)
        assert mean_and_error(row["KL divergence"]) == pytest.approx([block.kld, 0.01], abs=5e-5)
        assert float(row["influence"]) == pytest.approx(block.influence, abs=5e-5)
        assert [float(row["norm in"]), float(row["norm out"])] == pytest.approx(
            [block.norm_in, block.norm_out], abs=0.051
        )
        assert (float(row["MiB"]), row["KV bytes per token"], row[""]) == (3, "96", "")
    assert rows[5]["KL divergence"] == rows[5]["influence"] == "\u2013"
    assert rows[5][""] == "cannot go: block 4 <needs> it"


def test_plans_and_evaluations_beside_the_path(page: Page) -> None:
    rows = page.tables["points-table"]
    assert [row["name"] for row in rows] == ["0-2+2", "none", "2", "q3.gguf"]
    assert [row["kind"] for row in rows] == ["plan", "evaluation", "evaluation", "evaluation, another file"]
    assert [float(row["MiB left"]) for row in rows] == [19, 25, 22, 18.5]  # without KV cache and computing
    assert [mean_and_error(row["KL divergence"])[0] for row in rows] == [0.9877, 0, 0.4, 0.25]
    assert float(rows[3]["\u00d7 full"]) == round(16.25 / 16, 3)
    text = " ".join(page.text)
    assert "q3.gguf" in text and "full model, 25.0 MiB" in text


def test_the_summary_is_of_the_shares_that_the_path_reaches(page: Page) -> None:
    text = " ".join(page.text)
    assert f"{21.5 / 15.75 - 1:+.0%} perplexity" in text  # 10 and 20 % of six blocks are one, 30 % is one too
    assert text.count("--skip-layers") == 1
    assert "Perplexity of the full model 15.750 \u00b1 0.300" in text
    assert "a<b>.gguf" in text and "text & more.txt: 2 windows of 512 tokens" in text


def test_the_page_needs_nothing_else(page: Page, tmp_path: Path) -> None:
    assert page.n_svg == 3
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        assert link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in page.ids)
    path = tmp_path / "report.html"
    write_report(SCORE, [], path)
    content = path.read_text()
    assert "http" not in content and "@import" not in content and "<script" not in content
    references = set(re.findall(r"url\(([^)]*)\)", content))
    assert references and all(f'id="{ref[1:]}"' in content for ref in references)
    write_report(SCORE, [], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == content


def test_both_themes_have_every_colour(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(SCORE, [PLAN, EVALUATION], path)
    content = path.read_text()
    light, dark = re.findall(r":root \{ (?:color-scheme: light dark; )?(--.*?) \}", content)
    names = [{pair.split(":")[0].strip() for pair in theme.split(";")} for theme in (light, dark)]
    assert names[0] == names[1] and len(names[0]) == 8
    drawn = content[content.index("<svg") :]
    assert set(re.findall(r"var\((--\w+)\)", content)) <= names[0]
    # but for the dots on the colour map, which is the same in both
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", drawn)) <= {"#000000"}


def test_a_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "report.png"
    write_report(SCORE, [PLAN, EVALUATION], path)
    pixels = imread(path)
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1500
    blue = (31 / 255, 95 / 255, 191 / 255)
    assert (abs(pixels[..., :3] - blue).max(axis=-1) < 0.01).sum() > 1000  # the bars of the path
    assert tuple(pixels[0, 0, :3]) == (1, 1, 1)


def test_a_score_that_is_hardly_begun(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    blocks = [replace(block, influence=None, kld=None, perplexity=None) for block in BLOCKS]
    bare = replace(SCORE, complete=False, blocks=blocks, angular=[], path=[])
    (note,) = write_report(bare, [PLAN], path)
    page = Page(path)
    assert "not complete" in note and note in " ".join(page.text)
    assert set(page.tables) == {"blocks-table", "points-table"} and page.n_svg == 1
    write_report(bare, [], tmp_path / "report.png")


def test_halves_of_blocks(tmp_path: Path) -> None:
    """They stand beside their blocks, on the path and in plans; attention is a quarter of each block."""
    path = tmp_path / "report.html"
    score = score_with_halves(MODEL, [(2, "ffn"), 0, (3, "attn"), 2], [0.125, 0.25, 0.5, 0.75])
    halves = [replace(half, kld=0.01 * (half.block + 1), kld_error=0.01) for half in score.halves]
    score = replace(score, halves=halves, blocks=BLOCKS)
    plans = [Plan(MODEL, "2,3:attn", found=Found(kld=0.5)), Plan(MODEL, "none")]
    assert write_report(score, plans, path) == []
    page = Page(path)
    rows = page.tables["path-table"]
    assert [row["block"] for row in rows] == ["2:ffn", "0", "3:attn", "2"]
    assert [row["left out"] for row in rows] == ["2:ffn", "0,2:ffn", "0,3:attn,2:ffn", "0,2,3:attn"]
    assert [row["step"] for row in rows] == list("1234")
    shown = [row["block"] for row in page.tables["blocks-table"]]
    assert shown[:4] == ["0", "0:attn", "0:ffn", "1"] and len(shown) == 18
    left = [float(row["MiB left"]) for row in page.tables["points-table"]]
    assert left == [round(25 - (BLOCK + ATTN) / MIB, 2), 25]
    text = " ".join(page.text)
    assert "halves of blocks: upwards the attention alone" in text and page.n_svg == 2
    sizes = replace(score, blocks=[replace(block, weights_bytes=ATTN + FFN) for block in BLOCKS])
    write_report(sizes, [], path)
    text = " ".join(Page(path).text)
    assert "12.5% of the blocks' bytes out" in text  # the first step, for 10 %
    assert "29.2% of the blocks' bytes out" in text and "--skip-layers 0,2:ffn" in text
    write_report(score, plans, tmp_path / "report.png")


def test_halves_whose_bytes_a_score_does_not_know(tmp_path: Path) -> None:
    plan = Plan(MODEL, "2,3:attn", found=Found(kld=0.5, bytes=4 * MIB))
    write_report(SCORE, [plan, replace(plan, found=Found())], tmp_path / "report.html")
    rows = Page(tmp_path / "report.html").tables["points-table"]
    assert [row["MiB left"] for row in rows] == ["21.00", "\u2013"]


def test_another_model_is_refused(tmp_path: Path) -> None:
    other = replace(PLAN, model=replace(MODEL, name="z.gguf", model_id="f" * 16))
    with pytest.raises(ValueError, match=r"plan is about another model: z\.gguf"):
        write_report(SCORE, [other], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_another_file_of_the_model_is_noted(tmp_path: Path) -> None:
    other = replace(
        PLAN,
        model=replace(MODEL, file_id="e" * 16, file_type="Q8_0", weights_bytes=40 * MIB),
        found=Found(bytes=8 * MIB),
    )
    (note,) = write_report(SCORE, [other], tmp_path / "report.html")
    assert "other weights" in note
    page = Page(tmp_path / "report.html")
    assert note in " ".join(page.text)
    (row,) = page.tables["points-table"]
    assert (row["MiB left"], row["KL divergence"]) == ("32.00", "\u2013")


def test_a_plan_of_which_only_the_identities_are_known(tmp_path: Path) -> None:
    bare = replace(MODEL, name="", architecture="", n_layer=0, n_embd=0, file_type="", weights_bytes=0)
    found = Found(bytes=8 * MIB, kld=0.5)
    other = Plan(replace(bare, file_id="e" * 16), "2", found=found)
    (note,) = write_report(SCORE, [Plan(bare, "2", found=found), other], tmp_path / "report.html")
    assert note.startswith("plan was made with another file: ")
    rows = Page(tmp_path / "report.html").tables["points-table"]
    assert [row["MiB left"] for row in rows] == ["22.00", "\u2013"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_score("a.score.json", SCORE)
    write_plan("small.json", PLAN)
    write_evaluation("eval.json", EVALUATION)
    for png in ("a.png", "picture"):
        assert main(["report", "a.score.json", "small.json", "eval.json", "--png", png]) == 0
        assert capsys.readouterr().out == f"a.score.html\n{png}\n"
        assert Path(png).read_bytes().startswith(b"\x89PNG")
    rows = Page(tmp_path / "a.score.html").tables["points-table"]
    assert rows[0]["name"] == "small" and len(rows) == 4


@pytest.mark.parametrize("case", ["missing", "folder", "no folder", "no png", "score as other", "no score"])
def test_what_cannot_be_read_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    score, out = tmp_path / "a.json", tmp_path / "a.html"
    write_score(score, SCORE)
    (tmp_path / "folder").mkdir()
    args, said = {
        "missing": ([score, tmp_path / "none.json", "-o", out], "none.json: No such file"),
        "folder": ([score, "-o", tmp_path / "folder"], "folder: Is a directory"),
        "no folder": ([score, "-o", tmp_path / "none" / "a.html"], "No such file or directory"),
        "no png": ([score, "-o", out, "--png", tmp_path / "none" / "a.png"], "No such file or directory"),
        "score as other": (
            [score, score, "-o", out],
            "expected a file of format llama-skip-plan or llama-skip-eval",
        ),
        "no score": ([tmp_path / "folder", "-o", out], "folder: Is a directory"),
    }[case]
    assert main(["report", *map(str, args)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "folder"]


def test_without_matplotlib_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    write_score(tmp_path / "a.json", SCORE)
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from llama_skip.cli import main; sys.exit(main(['report', 'a.json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: charts need matplotlib: pip install 'llama-skip[report]'\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_not_known_is_a_dash(page: Page) -> None:
    assert not re.search(r"\b(nan|None)\b", " ".join(page.text))
