"""The exported page in Chromium, from a plain static server: by keyboard, at the width of a phone, for those who cannot
see it, without a network; and what it says is what the model says."""

import functools
import http.server
import shutil
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.cache import cache_folder
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.exporters.web import site
from abridged.exporters.web.npm import Package
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense, load_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if shutil.which("npm") is None or CHROMIUM is None:
    pytest.skip("there is no npm or no Chromium", allow_module_level=True)
PROMPT = " The river"
TYPESCRIPT = Package(
    "typescript",
    "5.9.3",
    "sha512-jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw==",
)
FOUR = {"bits": 2, "scale_dtype": "float16"}
BINARY = {"bits": 1, "quantizer": "binary", "scale_dtype": "float16"}
EIGHT = {"bits": 8, "scale_dtype": "float16"}
ZERO_POINTS = {"bits": 4, "quantizer": "minmax", "symmetric": False, "scale_dtype": "float16"}


def student(output, weights=FOUR):
    """The bundled model in few bits, without training."""
    model, tokenizer = load_dense("bundled"), load_tokenizer("bundled")
    method = Quantize.model_validate({"weights": weights, "embeddings": weights, "activations": {"bits": None}})
    method.build(model, families.view(model), lambda model: None).finish()
    save_checkpoint(model.eval(), output, tokenizer, {"recipe": {"name": "t"}, "teacher": "bundled", "seed": 0})
    return output


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    """Its address, by a server that sends no header beyond a file's type and size."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(browser):
    """A window as wide as a phone, and what it asked for and complained of."""
    context = browser.new_context(viewport={"width": 360, "height": 640})
    page = context.new_page()
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    context.close()


def until(page, words, seconds=120):
    """Wait for the status to say something. (The page's policy forbids how Playwright itself waits.)"""
    for _ in range(seconds * 20):
        if words in page.inner_text("#status"):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"the status is not {words!r} but {page.inner_text('#status')!r}")


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    account = export(student(folder / "small"), folder / "site", format="web")
    assert account["file_bytes"] < 8 * 2**20
    return folder


def test_it_writes_what_the_model_does_by_keyboard_alone(writer, window):
    model, tokenizer = dense_model(load(writer / "small"), torch.float32), load_tokenizer("bundled")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0]
    with served(writer / "site") as address:
        window.goto(address)
        until(window, "Ready, with one thread")
        keyboard = window.keyboard
        keyboard.type(PROMPT)  # the box has the focus
        keyboard.press("Tab")
        keyboard.type("24")
        keyboard.press("Tab")
        keyboard.type("0")
        keyboard.press("Enter")
        until(window, "tokens are written")
        assert window.evaluate("document.getElementById('answer').textContent") == tokenizer.decode(written)
        assert window.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "tokens/s" in window.inner_text("#speed")
        assert float(window.inner_text("#memory").split()[0]) > 16  # so much are the weights alone
        assert {url.split("/")[2] for url in window.asked if not url.startswith(("blob:", "data:"))} == {
            address.split("/")[2]
        }
        assert window.faults == []


def test_it_works_without_a_network_after_it_was_there_once(writer, window):
    with served(writer / "site") as address:
        window.goto(address)
        until(window, "Ready")
        assert window.inner_text("#offline") == "works from now on"
    window.reload()
    until(window, "Ready")
    assert window.evaluate("crossOriginIsolated")  # the service worker says so, where no server does
    window.fill("#text", PROMPT)
    window.press("#text", "Control+Enter")
    until(window, "tokens are written")


KEPT = """caches.keys().then((names) => caches.open(names[0])).then((cache) => cache.keys())
.then((kept) => kept.map((request) => request.url.split("/").pop()))"""


def test_a_new_export_takes_the_place_of_an_old_one(writer, window, tmp_path):
    shutil.copytree(writer / "site", tmp_path / "site")
    export(student(tmp_path / "other", EIGHT), tmp_path / "new", format="web")
    with served(tmp_path / "site") as address:
        window.goto(address)
        until(window, "Ready")
        shutil.rmtree(tmp_path / "site")
        (tmp_path / "new").rename(tmp_path / "site")
        window.reload()
        until(window, "Ready")
        names: list[str] = []
        for _ in range(200):  # the old one goes when the new one is kept
            names = [name for name in window.evaluate(KEPT) if name.startswith("model.")]
            if names == [file.name for file in (tmp_path / "site").glob("model.*")]:
                return
            window.wait_for_timeout(50)
        pytest.fail(f"{names} are kept")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(scheme, writer, window):
    window.emulate_media(color_scheme=scheme)
    with served(writer / "site") as address:
        window.goto(address)
        for step in ("Ready", "tokens are written"):
            until(window, step)
            found = axe.Axe().run(window).response["violations"]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
            window.fill("#text", PROMPT)
            window.fill("#most", "4")
            window.press("#most", "Enter")


def test_escape_stops_it(writer, window):
    with served(writer / "site") as address:
        window.goto(address)
        until(window, "Ready")
        window.fill("#text", PROMPT)
        window.fill("#most", "250")
        window.press("#most", "Enter")
        until(window, "Working")
        window.keyboard.press("Escape")
        until(window, "tokens are written")
        assert int(window.inner_text("#status").split()[0]) < 250


def test_faults_are_said(writer, window, tmp_path):
    shutil.copytree(writer / "site", tmp_path / "site")
    weights = next((tmp_path / "site").glob("model.*"))
    weights.rename(tmp_path / "weights")
    with served(tmp_path / "site") as address:
        window.goto(address)
        until(window, f"It did not work: the server has no {weights.name}")
        (tmp_path / "weights").rename(weights)
        window.reload()
        until(window, "Ready")
        window.fill("#text", "river " * 300)
        window.press("#text", "Control+Enter")
        until(window, "goes on with at most 255")


ASK = """async ([ids, threads]) => {
  const { Model } = await import("./engine.js");
  const model = await Model.load({ ...await (await fetch("site.json")).json(), threads }, () => {});
  await model.engine.decode(ids, {});
  const found = await model.engine.getLogits(-1);
  return [model.threads, found.sort((a, b) => a.token - b.token).map(({ p }) => p)];
}"""


@pytest.mark.parametrize("weights", [FOUR, BINARY, EIGHT, ZERO_POINTS], ids=["four", "binary", "eight", "zero points"])
def test_codes_and_threads_give_the_models_answers(weights, window, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_IN_FULL", 0)  # as for a model that is too large to be there in full
    small = student(tmp_path / "small", weights)
    export(small, tmp_path / "site", format="web", dense_fallback=weights is EIGHT)
    ids = load_tokenizer("bundled")("The river flows through the town and into the lake .")["input_ids"]
    with served(tmp_path / "site") as address:
        window.goto(address)
        until(window, "Ready, with")
        assert "one thread" not in window.inner_text("#status")  # the page was loaded again, alone
        threads, theirs = window.evaluate(ASK, [ids, 2])
        assert threads == 2
    ours = dense_model(load(small), torch.float32)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    theirs = torch.tensor(theirs, dtype=torch.float64).log()
    assert cosine_similarity(theirs - theirs.mean(), (ours - ours.mean()).double(), dim=0) > 0.999
    assert int(theirs.argmax()) == int(ours.argmax())


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "river", "##s", "run", "over", "a", "small", "town", "."]


@pytest.mark.parametrize("means", ["one", "many", "score"])
def test_it_labels(means, window, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = {0: "score"} if means == "score" else {0: "dry", 1: "wet", 2: "<b>"}
    problem = {"one": "single_label_classification", "many": "multi_label_classification", "score": "regression"}[means]
    config = BertConfig(vocab_size=len(WORDS), id2label=names, problem_type=problem, initializer_range=0.5, **sizes)
    model = BertForSequenceClassification(config).eval()
    settings = {"weights": FOUR, "embeddings": FOUR, "activations": {"bits": None}}
    Quantize.model_validate(settings).build(model, families.view(model), lambda model: None).finish()
    save_checkpoint(model, tmp_path / "small", tokenizer, {"recipe": {"name": "t"}, "teacher": "t", "seed": 0})
    export(tmp_path / "small", tmp_path / "site", format="web")
    text = "The rivers run over a small town."
    with torch.no_grad():
        outputs = dense_model(load(tmp_path / "small"), torch.float32)(**tokenizer(text, return_tensors="pt")).logits[0]
    shares = {"one": outputs.softmax(-1), "many": outputs.sigmoid(), "score": outputs}[means]
    expected = sorted(zip(names.values(), shares.tolist(), strict=True), key=lambda pair: -pair[1])
    with served(tmp_path / "site") as address:
        window.goto(address)
        until(window, "Ready")
        for _ in range(2):  # one text leaves nothing behind for the next
            window.fill("#text", text)
            window.press("#text", "Control+Enter")
            until(window, expected[0][0] if means != "score" else ".")
            rows = [row.split("\n")[:2] for row in window.locator("#answer li").all_inner_texts()]
            assert [name for name, _ in rows] == [name for name, _ in expected]
            for (_, shown), (_, share) in zip(rows, expected, strict=True):
                number, _, percent = shown.partition(" ")
                assert float(number) == pytest.approx(100 * share if percent else share, abs=0.3 if percent else 0.01)
        found = axe.Axe().run(window).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        assert window.faults == []


def source(name):
    return Path(str(files("abridged.exporters.web") / name))


def test_the_engines_script_by_itself(tmp_path):
    for file in (source("engine.js"), Path(__file__).with_name("engine.test.mjs")):
        shutil.copy(file, tmp_path)
    (tmp_path / "wllama.js").write_text("export class Wllama {}\n")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    ended = subprocess.run(["node", "--test", "engine.test.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_scripts_hold_to_their_types(tmp_path):
    """TypeScript reads the types in the comments, strictly; wllama has its own."""
    for package in (TYPESCRIPT, site.WLLAMA):
        package.files([])
        with tarfile.open(cache_folder("npm") / package.archive) as archive:
            archive.extractall(tmp_path / package.name, filter="data")
    for name in ("engine.js", "page.js", "service-worker.js"):
        shutil.copy(source(name), tmp_path)
    (tmp_path / "wllama.d.ts").write_text('export * from "./@wllama/wllama/package/esm/index.js";\n')
    strict = [
        "--strict",
        "--noUnusedLocals",
        "--noUnusedParameters",
        "--noImplicitReturns",
        "--noFallthroughCasesInSwitch",
    ]
    command = ["node", "typescript/package/lib/tsc.js", "--noEmit", "--checkJs", "--allowJs", "--target", "es2022"]
    for names, lib in (
        (["engine.js", "page.js"], "es2022,dom,dom.iterable"),
        (["service-worker.js"], "es2022,webworker"),
    ):
        more = ["--module", "es2022", "--moduleResolution", "bundler", "--skipLibCheck", "--lib", lib, *strict, *names]
        ended = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout
