"""The documentation's code runs, its commands exist, its scripts do what they say."""

import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything

import aida_lightning
from aida_lightning.commands import main
from aida_lightning.compare.loading import list_experiments, load_experiment
from aida_lightning.compare.methods import choose_optimizers

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
PROGRAMS = ("pip", "pytest", "tensorboard", "mkdocs", "nox", "pre-commit", "git")
TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


def blocks(page, language):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def with_blocks(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", with_blocks("python"))
def test_the_python_blocks_of_a_page_run_in_turn(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    module = registered(types.ModuleType("docs_" + page.removesuffix(".md").replace("/", "_")))
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), vars(module))


CLIENTS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger", "comet_ml": "CometLogger"}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.filterwarnings("default")  # the clients' own
def test_the_examples_of_the_page_of_loggers_run(client, tmp_path, monkeypatch):
    pytest.importorskip(client, reason="needs the extra `loggers`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    module = registered(types.ModuleType(f"docs_loggers_{client}"))
    (example,) = [block for block in blocks("loggers.md", "py") if f"{CLIENTS[client]}(" in block]
    for block in (*blocks("loggers.md", "python"), example):
        exec(compile(block, "loggers.md", "exec"), vars(module))


def test_the_tutorials_page_shows_every_script():
    page = (DOCS / "tutorials/index.md").read_text(encoding="utf-8")
    for script in TUTORIALS:
        assert f'    --8<-- "docs/tutorials/{script.name}"\n' in page


def registered(module):
    """Let a module be found: jsonargparse imports the modules of all classes that there are."""
    sys.modules[module.__name__] = module
    return module


def commands(page):
    """Give the commands of a page's console blocks, each a list of words."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def options_of(subcommand, capsys):
    with pytest.raises(SystemExit) as ended:
        main([subcommand, "--help"])
    assert ended.value.code == 0
    return set(re.findall(r"--[\w.]+", capsys.readouterr().out))


@pytest.mark.parametrize("page", with_blocks("bash"))
def test_commands_of_a_page_name_what_there_is(page, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aida-lightning"])  # LightningCLI warns of any arguments
    for program, *arguments in commands(page):
        if program == "aida-lightning":
            known = options_of(arguments[0], capsys)
            for word in arguments:
                if word.startswith("--"):
                    option = word.partition("=")[0].rstrip("+")
                    # --optimizer.k is an option of the class that --optimizer names.
                    assert option in known or option.partition(".")[0] in known, word
        elif program in ("python", "torchrun"):
            script = next(word for word in arguments if word.endswith(".py"))
            # Scripts that are not in docs/ are the reader's own.
            assert "/" not in script or (ROOT / script).is_file(), script
        else:
            assert program in PROGRAMS, program


@pytest.mark.parametrize("script", [s for s in TUTORIALS if s.stem != "distributed"], ids=str)
def test_a_tutorial_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(f"tutorial_{script.stem}", script)
    module = registered(importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch shards on GPUs alone"
)
def test_the_distributed_tutorial_runs_in_two_processes(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*launch, str(DOCS / "tutorials/distributed.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    # On a busy machine torch may abort a process whose program has ended.
    ended = "terminate called without an active exception" in run.stderr
    assert run.returncode == 0 or (ended and "AssertionError" not in run.stderr), run.stderr
    assert "the shards, loaded as a whole: 0.0e+00" in run.stdout


def test_every_picture_and_every_page_that_is_linked_is_there():
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        for path in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert (DOCS / page).parent.joinpath(path).is_file(), f"{page} links to {path}"


def test_the_experiment_to_start_from_is_accepted(tmp_path):
    (block,) = blocks("experiments.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    experiment = load_experiment(str(tmp_path / "mine.yaml")).experiment
    chosen = choose_optimizers(experiment.optimizers, experiment.optimizer_options)
    assert len(chosen) == 5  # one, and a grid of four


def test_the_page_of_experiments_has_all_that_are_shipped():
    page = (DOCS / "experiments.md").read_text(encoding="utf-8")
    assert [name for name in list_experiments() if f"`{name}`" not in page] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if page not in navigation] == []


def test_no_markup_of_the_docstrings_is_left_on_the_site():
    spec = importlib.util.spec_from_file_location("docstring_markup", DOCS / "docstring_markup.py")
    markup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(markup)
    for name in aida_lightning.__all__:
        page = markup.to_markdown(inspect.getdoc(getattr(aida_lightning, name)))
        for text in (".. math::", ":math:", ":class:", "``"):
            assert text not in page.replace("```", ""), name
    equation = markup.to_markdown(
        "Text\n\n.. math::\n    a &= b \\\\\n    c &= d\n\nmore, :func:`x.y`"
    )
    assert equation == (
        "Text\n\n$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n$$\n\nmore, `y`"
    )


def test_the_citation_has_the_version_that_is_built():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (built,) = re.findall(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert citation["version"] == built
    assert f"## [{built}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2203.13273"


def test_equations_become_mathml_that_needs_no_script():
    spec = importlib.util.spec_from_file_location("mathml", DOCS / "mathml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inline = module.on_page_content(r'a <span class="arithmatex">\(\beta_1 &lt; 1\)</span> b')
    assert inline.startswith('a <span class="arithmatex"><math')
    assert "<msub><mi>&#x003B2;</mi><mn>1</mn></msub>" in inline
    aligned = r"\begin{aligned} m &amp;= 1 \\ v &amp;= 2 \end{aligned}"
    display = module.on_page_content(f'<div class="arithmatex">\\[\n{aligned}\n\\]</div>')
    assert display.count("<mtr>") == 2
    assert 'display="block"' in display
    assert "&amp;" not in display
